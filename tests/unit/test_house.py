"""The sizes and the shape of the house: a change that needs more edits the number here, and says why."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "perm_ray"
FILES = sorted(PACKAGE.glob("**/*.py"))

LOOP_LINES = 100
FILE_LINES = 300
# 3,100 of them for what issues 14 and 16 added since (evaluations, chat, GPUs); the goal of the restructuring
# was 14,000, of all lines: 14,900 are code, the others docstrings, imports and empty.
PACKAGE_LINES = 25_500
TOP_LEVEL_ENTRIES = 18
README_LINES = 150
# Longer than they may be, until they are divided.
LONG_FILES = {"models/vllm.py", "models/endpoint.py"}
SAME_NAME = {
    "__init__.py",
    "actor.py",
    "pool.py",
}  # by convention; and a verb's file is called after the verb
FORBIDDEN_FIRST_WORDS = ("What", "Of", "Who", "All", "Where", "How", "Which", "As", "Is")
FORBIDDEN_IN_FUNCTIONS = ("The", "A", "An", "Each", "Every", "One", "Whether", "Why", "By", "Are", "Was")


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_loop_fits_on_a_page() -> None:
    assert num_lines(PACKAGE / "loop.py") <= LOOP_LINES


def test_no_file_is_long() -> None:
    long = {path.relative_to(PACKAGE).as_posix() for path in FILES if num_lines(path) > FILE_LINES}
    assert long <= LONG_FILES


def test_the_package_keeps_to_its_budget() -> None:
    assert sum(map(num_lines, FILES)) <= PACKAGE_LINES


def test_the_top_level_can_be_taken_in_at_a_glance() -> None:
    entries = {path.name for path in PACKAGE.iterdir()} - {"py.typed", "__pycache__"}
    assert len(entries) <= TOP_LEVEL_ENTRIES, sorted(entries)


def test_no_file_name_occurs_twice() -> None:
    names = Counter(path.name for path in FILES if path.parts[-2] not in ("cli", "judging"))
    assert {name for name, count in names.items() if count > 1} <= SAME_NAME


def test_no_test_file_name_occurs_twice() -> None:
    """Hold what pytest demands of folders that are no packages: two modules of a name are an error."""
    names = Counter(path.name for path in (ROOT / "tests").glob("**/test_*.py"))
    assert {name for name, count in names.items() if count > 1} == set()


def test_the_readme_is_short_and_has_a_picture() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    assert "](docs/images/architecture.svg)" in text


def test_tests_mirror_the_package() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    folders = {path.name for path in (ROOT / "tests/unit").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders <= rooms


def test_docstrings_begin_with_a_verb() -> None:
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = (ast.get_docstring(node) or "").partition(" ")[0]
                is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                if first in FORBIDDEN_FIRST_WORDS or (is_function and first in FORBIDDEN_IN_FUNCTIONS):
                    wrong.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)} {first}")
    assert wrong == []


def test_the_wheel_has_one_top_level_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == ["perm_ray*"]
    assert project["project"]["scripts"] == {"perm-ray": "perm_ray.cli.main:main"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_are_package_data(path: Path) -> None:
    shipped = PACKAGE / "config" / "shipped" / path.relative_to(ROOT / "configs")
    assert shipped.read_bytes() == path.read_bytes()
    assert re.search(r'"config/shipped/\*\.yaml"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
