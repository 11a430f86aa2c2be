"""`perm-ray ablate` as a person runs it: a cell that fails is told, and nothing is run twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.program import environment
from tests.support.tiny_run import tiny_run

VARIANTS = """
base: {base}
seeds: [1]
variants:
  plain: [run.steps=1]
  too careful: [run.steps=1, trainer.limits.grad_norm=1e-30, trainer.limits.action=stop]
"""


@pytest.mark.ray
@pytest.mark.timeout(600)  # two training runs and an evaluation, each with a Ray of its own
def test_variants_are_trained_graded_and_not_run_twice(tiny_model: Path, tmp_path: Path) -> None:
    base, file, out = tmp_path / "tiny.yaml", tmp_path / "mine.yaml", tmp_path / "found"
    base.write_text(tiny_run(tiny_model, tmp_path / "runs", mlflow=False))
    file.write_text(VARIANTS.format(base=base))
    command = [sys.executable, "-m", "perm_ray.cli.main", "ablate", str(file), "--out", str(out)]

    def ablate() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=500, env=environment(), check=False
        )

    done = ablate()
    assert done.returncode == 1, done.stderr[-3000:]
    found = json.loads((out / "evaluation.json").read_text())
    assert [each["model"] for each in found["models"]] == ["before", "plain"]
    assert found["models"][1]["num_answers"] == 2
    (failed,) = [remark for remark in found["remarks"] if remark.startswith("too-careful-seed1 failed")]
    assert "grad" in failed
    written = (out / "cells/plain-seed1/summary.json").stat().st_mtime_ns
    file.write_text(file.read_text().partition("  too careful")[0])
    again = ablate()  # no engine is started
    assert again.returncode == 0
    assert "plain-seed1: finished before" in again.stdout
    assert (out / "cells/plain-seed1/summary.json").stat().st_mtime_ns == written
