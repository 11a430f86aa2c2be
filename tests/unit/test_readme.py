"""The README's commands, files and links hold: each command is run here as far as it can be in a moment.

`make train` and `make test` themselves are what `.ci/run` and `tests/e2e` run; training commands are run
with `--dry-run`, benchmarks as far as their configuration.
"""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from perm_ray.cli import benchmark, judge
from perm_ray.cli.main import VERBS
from perm_ray.config import CONFIGS
from perm_ray.config.load import load_config
from perm_ray.evaluation.calibration.labels import read_labels
from perm_ray.judges.session import build_perspectives

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line.strip() for block in blocks("bash") for line in block.splitlines() if line.strip()]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the files that the README has people write."""
    (data,) = blocks("jsonl")
    (tmp_path / "my_scenarios.jsonl").write_text(data, encoding="utf-8")
    (config,) = blocks("yaml")
    (tmp_path / "my.yaml").write_text(config, encoding="utf-8")
    return tmp_path


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
    options = benchmark.parser().parse_args(shlex.split(command)[2:])
    module = __import__(f"benchmarks.{options.name}", fromlist=["CONFIG"])
    load_config(CONFIGS / module.CONFIG)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("perm-ray judge")])
def test_judge_commands_are_accepted(command: str) -> None:
    verb, *arguments = shlex.split(command)[2:]
    assert verb in judge.VERBS
    module = importlib.import_module(f"perm_ray.cli.judging.{verb}")
    module.parser().parse_intermixed_args(arguments)


# Verbs that are run whole elsewhere: e2e/test_cluster_job.py, e2e/test_report.py, test_plan.py and others.
TRAINING = ("perm-ray train", "perm-ray benchmark", "perm-ray judge")
OPERATING = tuple(
    f"perm-ray {verb}"
    for verb in ("doctor", "plan", "report", "feedback", "submit", "status", "logs", "stop")
)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(OPERATING)])
def test_operating_commands_are_accepted(command: str) -> None:
    verb, *arguments = shlex.split(command)[1:]
    assert verb in VERBS
    importlib.import_module(f"perm_ray.cli.{verb}").parser().parse_args(arguments)


def test_the_judges_that_live_elsewhere_are_a_configuration(tmp_path: Path) -> None:
    (text,) = blocks("yml")
    rubrics = tmp_path / "rubrics"
    rubrics.mkdir()
    for name in ("expression.md", "expression.de.md"):
        (rubrics / name).write_text("Judge.", encoding="utf-8")
    file = tmp_path / "judges.yaml"
    file.write_text(text.replace("rubrics/", f"{rubrics}/"), encoding="utf-8")
    assert build_perspectives(load_config(file).judges)["expression"].rubric.of("de-AT") == "Judge."


def test_the_rated_reply_is_read(tmp_path: Path) -> None:
    (row,) = blocks("json")
    file = tmp_path / "my_ratings.jsonl"
    file.write_text(row, encoding="utf-8")
    assert len(read_labels(file, "jsonl").items) == 1


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
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_tests_that_security_promises_name_exist() -> None:
    """Each promise is followed by where it is tested."""
    named = re.findall(r"`(tests/[^`]+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 5
    assert [name for name in named if not list(ROOT.glob(name))] == []


def test_the_map_names_what_is_there() -> None:
    names = re.findall(r"\b([a-z_]+\.py)\b", README)
    known = {path.name for path in (*ROOT.glob("perm_ray/**/*.py"), *ROOT.glob("perm_ray/cli/**/*.py"))}
    assert sorted(set(names) - known) == []
