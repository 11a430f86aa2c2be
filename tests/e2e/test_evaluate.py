"""`perm-ray evaluate perm` as a person runs it: two models, a page, and nothing done twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.program import environment
from tests.support.tiny_model import write_tiny_model
from tests.support.tiny_run import tiny_run


def evaluate(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perm_ray.cli.main", "evaluate", "perm", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment(), check=False
    )


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_two_models_are_compared_and_the_answers_kept(tiny_model: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=7)
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_run(tiny_model, tmp_path / "runs", mlflow=False))
    out = tmp_path / "found"
    given = (tiny_model, other, "--config", config, "--limit", 3, "--out", out)
    done = evaluate(*given)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = json.loads((out / "evaluation.json").read_text())["models"]
    assert first["num_answers"] == second["num_answers"] == 3
    assert first["differences"] == {}
    assert second["differences"]["tokens"]["pairs"] == 3
    assert {"reward", "resonation", "format", "distinct_2"} <= first["means"].keys()
    page = (out / "evaluation.html").read_text()
    assert str(other) in page
    assert "<script" not in page
    files = {file: file.read_bytes() for file in (out / "answers").iterdir()}
    assert len(files) == 2

    again = evaluate(*given)  # everything is there: no engine is started
    assert again.returncode == 0
    assert {file: file.read_bytes() for file in (out / "answers").iterdir()} == files
    changed = evaluate(*given, "rollout.temperature=0.5")
    assert changed.returncode == 2
    assert "other sampling" in changed.stderr


def test_what_cannot_be_evaluated_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("")
    for arguments, said in (
        (("run.seed=1",), "found none"),
        ((tiny_model, "--limit", "1"), "--limit must be 2 or more"),
        ((run,), "without a trained model"),
        ((tmp_path / "nowhere",), "does not exist"),
    ):
        done = evaluate(*arguments, "--out", tmp_path / "out")
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
