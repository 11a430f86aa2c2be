"""The house's one-way order of imports (DESIGN, section 3), read off the source; and what stays unloaded."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Five levels from the bottom up, the rooms of each in order. A module may import its own room and whatever
# stands before that. An entry is a module or a folder; the longest one that fits decides.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("types", "errors", "files"),
    ("config", "data", "rewards"),
    ("cluster", "models", "judges", "rollout", "trainer"),
    ("evaluation", "tracking", "experience", "runs", "cluster.planning", "cluster.doctor"),
    ("loop", "runs.start", "runs.finetune", "cli"),
)

# Importer, imported: where the order is not kept, and why. Nowhere, at present.
EXCEPTIONS: dict[tuple[str, str], str] = {}

HEAVY = ("torch", "vllm", "deepspeed", "transformers", "mlflow")


# ---- reading the source ---------------------------------------------------------------------


@cache
def sources() -> dict[str, Path]:
    """Every module of the package: its dotted name and its file."""
    files = [*ROOT.glob("perm_ray/**/*.py")]
    return {dotted(path.relative_to(ROOT)): path for path in sorted(files)}


def dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(tree: ast.AST, typing_only: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports, those inside functions too; those under TYPE_CHECKING only when asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for branch in [*node.body, *node.orelse] if typing_only else node.orelse:
                yield from statements(ast.Module([branch], []), typing_only)
        else:
            yield from statements(node, typing_only)


@cache
def imported(module: str, typing_only: bool = False) -> frozenset[str]:
    """What a module imports: modules of ours by their full name, others by their first word."""
    found: set[str] = set()
    for node in statements(ast.parse(sources()[module].read_text(encoding="utf-8")), typing_only):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{module} line {node.lineno}: imports name the module in full"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in sources() else str(node.module) for name in whole]
        found |= {name if is_ours(name) else name.partition(".")[0] for name in names}
    return frozenset(found)


def is_ours(name: str) -> bool:
    return name.partition(".")[0] == "perm_ray"


def placed(module: str) -> int | None:
    """A module's level and its room; None when the table does not know it, -1 for a package's opening."""
    if sources()[module].name == "__init__.py":
        return -1
    name = module.removeprefix("perm_ray.")
    order = [entry for level in LEVELS for entry in level]
    fits = [
        (len(entry), place)
        for place, entry in enumerate(order)
        if name == entry or name.startswith(f"{entry}.")
    ]
    return max(fits)[1] if fits else None


# ---- the order ------------------------------------------------------------------------------


@pytest.mark.parametrize("module", sources())
def test_a_module_imports_only_what_is_below_it_or_in_its_own_room(module: str) -> None:
    place = placed(module)
    assert place is not None, f"give {module} a level in LEVELS"
    wrong = []
    for other in filter(is_ours, imported(module)):
        assert other in sources(), f"{module} imports {other}, which is no module"
        other_place = placed(other)
        excepted = (module.removeprefix("perm_ray."), other.removeprefix("perm_ray.")) in EXCEPTIONS
        if (other_place is None or other_place > place) and not excepted:
            wrong.append(other)
    assert not wrong, f"{module} must not import {', '.join(wrong)}, which stands above it"


def test_every_exception_to_the_order_is_still_in_use() -> None:
    unused = [pair for pair in EXCEPTIONS if f"perm_ray.{pair[1]}" not in imported(f"perm_ray.{pair[0]}")]
    assert not unused


def test_every_line_of_the_table_names_something() -> None:
    names = [module.removeprefix("perm_ray.") for module in sources()]
    entries = [entry for level in LEVELS for entry in level]
    assert [e for e in entries if not any(n == e or n.startswith(f"{e}.") for n in names)] == []


def test_a_package_imports_nothing_of_ours_when_it_is_opened() -> None:
    packages = [module for module, path in sources().items() if path.name == "__init__.py"]
    assert [package for package in packages if any(map(is_ours, imported(package)))] == []


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: set(filter(is_ours, imported(module))) - {module} for module in sources()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_only_weight_sync_knows_both_the_trainer_and_the_rollout_engines() -> None:
    knowing = []
    for module in sources():
        rooms = {name.split(".")[1] for name in imported(module, typing_only=True) if name.count(".") >= 2}
        if {"trainer", "rollout"} <= rooms:
            knowing.append(module)
    assert set(knowing) <= {"perm_ray.runs.weight_sync", "perm_ray.runs.run", "perm_ray.experience"}


@pytest.mark.parametrize(
    ("package", "users"),
    [
        ("omegaconf", {"config.load"}),
        ("deepspeed", {"trainer.deepspeed", "trainer.state", "trainer.weights"}),
        ("mlflow", {"tracking"}),
        ("rich", {"tracking", "runs.start", "cli"}),
        ("vllm", {"models"}),
    ],
)
def test_a_package_has_few_users(package: str, users: set[str]) -> None:
    using = {m.removeprefix("perm_ray.") for m in sources() if package in imported(m, typing_only=True)}
    assert using, f"nobody imports {package}: take it out of this table"
    assert {m for m in using if not any(m == user or m.startswith(f"{user}.") for user in users)} == set()


# ---- what importing loads -------------------------------------------------------------------


def loaded(*modules: str) -> set[str]:
    """The packages that a fresh interpreter has loaded after importing `modules`."""
    code = f"import json, sys, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_importing_the_driver_loads_nothing_heavy() -> None:
    assert loaded("perm_ray.runs.start", "perm_ray.cli.train", "perm_ray.cli.main").isdisjoint(HEAVY)


def test_the_command_line_loads_not_even_ray_before_it_has_set_authentication() -> None:
    modules = loaded("perm_ray.config.load", "perm_ray.cli.main", "perm_ray.cli.options")
    assert modules.isdisjoint((*HEAVY, "ray", "rich"))
