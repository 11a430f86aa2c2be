"""A whole training run in a folder that goes away, for benchmarks that measure one."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from perm_ray.config.schema import Config
from perm_ray.errors import RunError
from perm_ray.evaluation.model_comparison import Measured


@dataclass(frozen=True)
class TrainingRun:
    """What a finished run left: a row of metrics per step, its summary, and the answers of each held-out
    evaluation, the first one before training."""

    rows: list[dict[str, float]]
    summary: dict
    heldout: list[list[Measured]]


def train(config: Config) -> TrainingRun:
    """Run `config` as `perm-ray train` does, without a tracker."""
    from perm_ray.cli.train import train_plan
    from perm_ray.runs.directory import RunDirectory, run_path
    from perm_ray.runs.evaluate import read_answers
    from perm_ray.runs.run_plan import plan_run

    with tempfile.TemporaryDirectory(prefix="perm-ray-benchmark-") as folder:
        config = replace(
            config,
            run=replace(config.run, dir=folder, name="benchmark"),
            tracking=replace(config.tracking, mlflow=False),
        )
        if code := train_plan(plan_run(config), resume=None):
            raise RunError(f"The benchmark's training run ended with exit code {code}.")
        directory = RunDirectory(run_path(config.run, datetime.now()))
        summary = json.loads(Path(directory.summary_file).read_text(encoding="utf-8"))
        heldout = [read_answers(file) for file in sorted(directory.samples.glob("heldout_*.jsonl"))]
        return TrainingRun(directory.read_metrics(), summary, heldout)
