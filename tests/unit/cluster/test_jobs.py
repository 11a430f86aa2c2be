"""What a job is sent, and what is said when the cluster refuses it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from perm_ray.cli.main import call
from perm_ray.cluster.jobs import package
from perm_ray.cluster.jobs.client import Job, explain
from perm_ray.config.load import load_config
from perm_ray.errors import ConfigError

SCENARIO = '{"persona": "Ana, 41", "scenario": "She was passed over.", "dialogue": ["I should be happy."]}\n'


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A user's configuration with a data file and a rubric beside it that has a variant."""
    (tmp_path / "mine.jsonl").write_text(SCENARIO, encoding="utf-8")
    (tmp_path / "rubric.md").write_text("Judge.", encoding="utf-8")
    (tmp_path / "rubric.de.md").write_text("Urteile.", encoding="utf-8")
    (tmp_path / "huge.bin").write_bytes(b"never sent")
    return tmp_path


def packed(files: Path, target: Path, *overrides: str, **options: object) -> list[str]:
    config = load_config(None, [f"data.train={files / 'mine.jsonl'}", *overrides])
    secrets = options.get("secrets", {})
    assert isinstance(secrets, dict)
    package.make_package(target, config, secrets, with_code=bool(options.get("with_code")))
    return sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())


def test_a_package_has_what_the_configuration_names_and_nothing_else(files: Path, tmp_path: Path) -> None:
    target = tmp_path / "job"
    target.mkdir()
    found = packed(files, target, f"judges.pools.expression.rubric={files / 'rubric.md'}")
    assert found == [
        "config.yaml",
        "inputs/data.train/mine.jsonl",
        "inputs/judges.pools.expression.rubric/rubric.de.md",
        "inputs/judges.pools.expression.rubric/rubric.md",
    ]
    config = load_config(target / "config.yaml")
    assert config.data.train == "inputs/data.train/mine.jsonl"
    assert config.data.heldout == "builtin:heldout"


def test_the_code_goes_along_without_leftovers(files: Path, tmp_path: Path) -> None:
    target = tmp_path / "job"
    target.mkdir()
    found = packed(files, target, with_code=True)
    assert {"perm_ray/cli/job.py", "perm_ray/loop.py", "perm_ray/config/shipped/base.yaml"} <= set(found)
    assert not [name for name in found if "__pycache__" in name or name.startswith("tests")]


def test_too_much_is_refused_before_the_upload_with_the_largest_named(files: Path, tmp_path: Path) -> None:
    with (files / "mine.jsonl").open("ab") as file:
        file.truncate(package.LIMIT_BYTES + 1)
    target = tmp_path / "job"
    target.mkdir()
    with pytest.raises(ConfigError, match=r"100 MiB.*inputs/data\.train/mine\.jsonl \(100\.0 MiB\)"):
        packed(files, target)


def test_secrets_go_by_name_in_a_file_that_is_read_once(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "job"
    target.mkdir()
    monkeypatch.setenv("JUDGE_KEY", "")  # so that it is put back
    monkeypatch.delenv("JUDGE_KEY")
    monkeypatch.setenv("SET_ALREADY", "the node's")
    packed(files, target, secrets={"JUDGE_KEY": "sk-planted", "SET_ALREADY": "mine"})
    assert "sk-planted" not in (target / "config.yaml").read_text()
    file = target / package.SECRETS_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    package.take_secrets(target)
    assert (os.environ["JUDGE_KEY"], os.environ["SET_ALREADY"]) == ("sk-planted", "the node's")
    assert not file.exists()
    package.take_secrets(target)  # a job without any


def test_a_secret_in_the_configuration_is_not_sent(files: Path, tmp_path: Path) -> None:
    target = tmp_path / "job"
    target.mkdir()
    with pytest.raises(ConfigError, match="--env"):
        packed(files, target, "tracking.mlflow_uri=http://me:hunter2@mlflow:5000")
    assert list(target.rglob("config.yaml")) == []


def test_an_environment_variable_is_named_and_never_given() -> None:
    assert package.secrets_from(["A"], {"A": "1", "B": "2"}) == {"A": "1"}
    with pytest.raises(ConfigError, match="found 'KEY'") as caught:
        package.secrets_from(["KEY=sk-planted"], {})
    assert "sk-planted" not in str(caught.value)


class AuthenticationError(RuntimeError):
    """Ray's has this name."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AuthenticationError("Unauthorized"), "does not accept the token"),
        (
            ConnectionError("Failed to connect to Ray at address: http://x:8265."),
            "nothing answers at http://x",
        ),
        (
            RuntimeError("Request failed with status code 500: ... Job with submission_id a already exists."),
            "choose another run.name",
        ),
        (RuntimeError("Request failed with status code 500: agent missing"), "not ready yet"),
        (KeyError("odd"), "KeyError: 'odd'"),
    ],
)
def test_each_refusal_is_a_sentence(error: Exception, words: str) -> None:
    assert words in explain(error, "http://x:8265")


def test_a_job_is_described_for_people() -> None:
    job = Job("run-1", "run-1", "RUNNING", "It is\nrunning.", 0.0, None, {"mlflow_run_id": "abc"})
    assert not job.ended
    lines = job.lines()
    assert lines[0].split() == ["job", "run-1"]
    assert "message         It is running." in lines
    assert "mlflow_run_id   abc" in lines


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["run.dir=runs"], "absolute path on storage that all nodes share"),
        (["run.dir=/shared", "tracking.mlflow_uri=mlflow:5000"], "http://"),
    ],
)
def test_what_a_job_cannot_do_is_said_before_anything_is_sent(
    overrides: list[str], words: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("run: {steps: 1}")
    with pytest.raises(ConfigError, match=words):
        call("submit", ["--config", str(file), *overrides])
