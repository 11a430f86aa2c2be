"""The commands, code blocks and links of the README and of docs/ hold: each is run here as far as it can be.

`make train` and `make test` themselves are what `.ci/run` and `tests/e2e` run; training commands are run
with `--dry-run`, benchmarks as far as their configuration.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import perm_ray
from docs.generate import generated
from perm_ray.cli.options import VERBS, parser_of
from perm_ray.config import CONFIGS
from perm_ray.config.load import load_config
from perm_ray.evaluation.calibration.labels import read_labels
from perm_ray.judges.perspective import load_perspective
from perm_ray.judges.startup import build_perspectives
from perm_ray.types import Scale

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))
}


def blocks(language: str) -> list[str]:
    return [
        block for text in PAGES.values() for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    ]


COMMANDS = [line.strip() for block in blocks("bash") for line in block.splitlines() if line.strip()]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the files that the README has people write."""
    (data,) = blocks("jsonl")
    (tmp_path / "my_scenarios.jsonl").write_text(data, encoding="utf-8")
    for number, config in enumerate(blocks("yaml")):
        (tmp_path / f"my{number or ''}.yaml").write_text(config, encoding="utf-8")
    return tmp_path


def test_every_configuration_is_one(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    files = sorted(workplace.glob("my*.yaml"))
    assert len(files) >= 2
    for file in files:
        build_perspectives(load_config(file).judges)


def test_the_python_of_the_readme_runs_as_far_as_its_judges() -> None:
    """tests/e2e/test_library.py runs the same calls; here every name and argument of the block is checked."""
    (program,) = blocks("python")
    tree = ast.parse(program)
    named = {ast.unparse(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for name in ("perm_ray.load_config", "perm_ray.Judges", "perm_ray.train"):
        node = named[name]
        function = getattr(perm_ray, name.removeprefix("perm_ray."))
        inspect.signature(function).bind(*node.args, **{str(k.arg): k.value for k in node.keywords})
    scored = named["judges.score"]
    inspect.signature(perm_ray.Judges.score).bind(None, **{str(k.arg): k.value for k in scored.keywords})


def test_the_perspective_of_the_docs_is_one(tmp_path: Path) -> None:
    (text,) = blocks("markdown")
    file = tmp_path / "freedom.md"
    file.write_text(text, encoding="utf-8")
    perspective = load_perspective("freedom", file)
    assert (perspective.reads, perspective.scale) == ("response", Scale(1, 5))


@pytest.mark.parametrize(("path", "text"), generated().items(), ids=lambda each: getattr(each, "name", ""))
def test_what_is_generated_is_fresh(path: Path, text: str) -> None:
    assert path.read_text(encoding="utf-8") == text, "run python -m docs.generate"


def test_there_are_commands() -> None:
    assert {"make train", "make test", "perm-ray train --dry-run"} <= set(COMMANDS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    target = command.split()[1]
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if c.startswith("perm-ray train") and "--resume" not in c and "--replay" not in c],
)
def test_training_commands_are_accepted(command: str, workplace: Path) -> None:
    arguments = shlex.split(command)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "perm_ray.cli.main", *arguments, "--dry-run"],
        cwd=workplace,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert "Resources" in done.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("perm-ray benchmark")])
def test_benchmark_commands_are_accepted(command: str) -> None:
    options = parser_of("benchmark").parse_args(shlex.split(command)[2:])
    module = __import__(f"benchmarks.{options.name}", fromlist=["CONFIG"])
    load_config(CONFIGS / module.CONFIG)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("perm-ray judge")])
def test_judge_commands_are_accepted(command: str) -> None:
    verb, *arguments = shlex.split(command)[2:]
    parser_of(f"judge {verb}").parse_intermixed_args(arguments)


# Verbs that are run whole elsewhere: e2e/test_cluster_job.py, e2e/test_report.py, test_plan.py and others.
TRAINING = ("perm-ray train", "perm-ray benchmark", "perm-ray judge")
OPERATING = (
    *("perm-ray finetune", "perm-ray evaluate", "perm-ray serve", "perm-ray doctor", "perm-ray plan"),
    *("perm-ray report", "perm-ray feedback", "perm-ray submit", "perm-ray status", "perm-ray logs"),
    *("perm-ray stop", "perm-ray ablate", "perm-ray chat"),
)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(OPERATING)])
def test_operating_commands_are_accepted(command: str) -> None:
    words = shlex.split(command)[1:]
    verb = next(verb for verb in VERBS if words[: len(verb.split())] == verb.split())
    parser_of(verb).parse_intermixed_args(words[len(verb.split()) :])


def test_the_judges_that_live_elsewhere_are_a_configuration(tmp_path: Path) -> None:
    (text,) = blocks("yml")
    rubrics = tmp_path / "rubrics"
    rubrics.mkdir()
    for name in ("expression.md", "expression.de.md"):
        (rubrics / name).write_text("Judge.", encoding="utf-8")
    file = tmp_path / "judges.yaml"
    file.write_text(text.replace("rubrics/", f"{rubrics}/"), encoding="utf-8")
    assert build_perspectives(load_config(file).judges)["expression"].rubric.of("de-AT").text == "Judge."


def test_the_rated_reply_is_read(tmp_path: Path) -> None:
    (row,) = blocks("json")
    file = tmp_path / "my_ratings.jsonl"
    file.write_text(row, encoding="utf-8")
    assert len(read_labels(file).items) == 1


def test_every_command_is_of_a_kind_that_is_tested() -> None:
    kinds = (
        "make ",
        "bash cluster/local/walk.sh",
        "perm-ray train",
        "perm-ray benchmark",
        "perm-ray judge",
        *OPERATING,
    )
    assert [command for command in COMMANDS if not command.startswith(kinds)] == []


def test_links_and_files_exist() -> None:
    broken = []
    for page, text in PAGES.items():
        links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
        broken += [(page.name, link) for link in links if not (page.parent / link.partition("#")[0]).exists()]
    assert broken == []


def test_the_tests_that_security_promises_name_exist() -> None:
    """Each promise is followed by where it is tested."""
    named = re.findall(r"`(tests/[^`]+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 5
    assert [name for name in named if not list(ROOT.glob(name))] == []


def test_the_map_names_what_is_there() -> None:
    text = (ROOT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
    paths = re.findall(r"`([\w/]+/(?:\w+\.(?:py|md)|))`", text)
    assert len(paths) > 15
    assert [
        path for path in paths if not any((root / path).exists() for root in (ROOT / "perm_ray", ROOT))
    ] == []
    names = set(re.findall(r"\b([a-z_]+\.py)\b", text))
    here = {path.name for folder in ("perm_ray", "docs") for path in ROOT.glob(f"{folder}/**/*.py")}
    assert sorted(names - here) == []
