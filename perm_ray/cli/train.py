"""`perm-ray train`: run the loop from a configuration, or resume a run.

Everything that can be wrong is checked before anything heavy is imported or started.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from perm_ray.cli.dry_run import describe
from perm_ray.cli.options import parser_of
from perm_ray.cli.replay import replay
from perm_ray.config import CONFIGS
from perm_ray.config.load import load_config
from perm_ray.config.schema import Config
from perm_ray.errors import CheckpointError, Interrupted
from perm_ray.runs import start
from perm_ray.runs.checkpoint import checkpoint_of
from perm_ray.runs.directory import RunDirectory
from perm_ray.runs.run_plan import RunPlan, models_to_fetch, plan_run, prepare_models
from perm_ray.runs.signals import StopSignals


def run(options: argparse.Namespace) -> int:
    """Train, replay a step, or say what would be run."""
    plan = plan_run(_config(options))
    if options.dry_run:
        missing = models_to_fetch(plan)
        if not missing:
            prepare_models(plan)
        print(describe(plan), end="")
        for name in missing:
            print(f"Not checked: {name} would be downloaded first, and every prompt rendered with it.")
        return 0
    if options.replay is not None:
        return replay(plan, options.replay)
    return train_plan(plan, options.resume)


def train_plan(plan: RunPlan, resume: Path | None) -> int:
    """Train until the end or a signal; returns the exit code."""
    with StopSignals() as stop:
        try:
            directory = start.train_plan(plan, resume, stop)
        except Interrupted as error:
            print(f"perm-ray train: {error}", file=sys.stderr)
            return 128 + (stop.received or 0)
    return _truth(plan.config, directory) if plan.config.evaluation.truth else 0


def _truth(config: Config, directory: RunDirectory) -> int:
    """Ask the policies before and after training what warmth is known to cost, where they were not yet."""
    from perm_ray.cli.evaluate import truth

    run, out = str(directory.path), str(directory.path / "truth")
    mlflow = ["--mlflow"] if config.tracking.mlflow else []
    given = [run, "--config", str(directory.config_file), "--out", out, *mlflow]
    print("Truth and boundaries, before and after; `perm-ray train --resume` goes on after a stop.")
    return truth(parser_of("evaluate truth").parse_intermixed_args(given))


def _config(options: argparse.Namespace) -> Config:
    if options.replay is not None:
        beside = options.replay.absolute().parent / "config.yaml"
        return load_config(options.config or beside, options.overrides)
    if options.resume is None:
        return load_config(options.config or CONFIGS / "local.yaml", options.overrides)
    return resumed_config(options.resume, options.config, options.overrides)


def resumed_config(resume: Path, file: Path | None, overrides: Sequence[str]) -> Config:
    """Return the configuration of a run that is gone on with: its own, or `file`, at the same place."""
    path, _ = checkpoint_of(resume)
    own = path / "config.yaml"
    if not own.is_file():
        raise CheckpointError(f"--resume expects a run directory or one of its checkpoints, found no {own}.")
    place = [f"run.dir={path.parent}", f"run.name={path.name}"]
    return load_config(file or own, [*overrides, *place])
