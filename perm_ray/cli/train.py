"""`perm-ray train`: run the loop from a configuration, or resume a run.

Everything that can be wrong is checked before anything heavy is imported or started.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from perm_ray.cluster.session import authenticate
from perm_ray.config.load import CONFIGS, dump_config, load_config
from perm_ray.config.schema import Config
from perm_ray.errors import CheckpointError, Interrupted, JudgeFailureRateError

if TYPE_CHECKING:
    from perm_ray.runs.directory import RunDirectory
    from perm_ray.runs.run_state import RunState
    from perm_ray.runs.runtime import Models, RunPlan
    from perm_ray.runs.signals import StopSignals
    from perm_ray.tracking.model_registry import Candidate
    from perm_ray.tracking.tracker import EndState
    from perm_ray.train import Driver


def parser() -> argparse.ArgumentParser:
    """The options of `perm-ray train`."""
    parser = argparse.ArgumentParser(
        prog="perm-ray train",
        description="Train a policy with PERM's reward: sample, judge from every perspective, update, sync.",
    )
    parser.add_argument(
        "--config", type=Path, default=None, help="YAML file (default: configs/local.yaml)", metavar="FILE"
    )
    parser.add_argument(
        "--resume",
        type=Path,
        default=None,
        help="go on from a run's last checkpoint, or from the one whose folder is given",
        metavar="RUN_DIR",
    )
    parser.add_argument(
        "--replay", type=Path, default=None, help="run a failed step's training alone", metavar="FILE"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print what would be run, start nothing"
    )
    parser.add_argument(
        "overrides", nargs="*", help="configuration values, such as run.steps=20", metavar="a.b=c"
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Returns the exit code; raises `PermRayError`s for `cli.py` to print."""
    options = parser().parse_intermixed_args(arguments)
    config = _config(options)
    authenticate(config.ray.address)
    from perm_ray.cli.dry_run import describe
    from perm_ray.runs.runtime import plan_run

    plan = plan_run(config)
    if options.dry_run:
        print(describe(plan), end="")
        return 0
    if options.replay is not None:
        from perm_ray.cli.replay import replay

        return replay(plan, options.replay)
    return train_plan(plan, options.resume)


def _config(options: argparse.Namespace) -> Config:
    if options.replay is not None:
        beside = options.replay.absolute().parent / "config.yaml"
        return load_config(options.config or beside, options.overrides)
    if options.resume is None:
        return load_config(options.config or CONFIGS / "local.yaml", options.overrides)
    from perm_ray.runs.checkpoint import checkpoint_of

    path, _ = checkpoint_of(options.resume)
    file = path / "config.yaml"
    if not file.is_file():
        raise CheckpointError(f"--resume expects a run directory or one of its checkpoints, found no {file}.")
    # In quotes: a name such as 1e5 is a number to YAML.
    place = [f"run.dir={json.dumps(str(path.parent))}", f"run.name={json.dumps(path.name)}"]
    return load_config(options.config or file, [*options.overrides, *place])


def train_plan(plan: RunPlan, resume: Path | None) -> int:
    """Train a checked plan, from the start or from the checkpoint of `resume`; returns the exit code."""
    from perm_ray.runs.checkpoint import Checkpoints, checkpoint_of
    from perm_ray.runs.directory import RunDirectory, run_path
    from perm_ray.runs.run_state import RunState, check_agrees, differences_in_numbers
    from perm_ray.runs.runtime import prepare_models
    from perm_ray.runs.signals import StopSignals

    config = plan.config
    path = run_path(config.run, datetime.now())
    checkpoints = Checkpoints(path / "checkpoints", config.checkpoint)
    fresh = RunState.new(plan.new_sampler().state(), plan.contents(), config)
    state, checkpoint = fresh, None
    if resume is not None:
        state, checkpoint = checkpoints.load(checkpoint_of(resume)[1])
        check_agrees(state.without_weights(), fresh)  # what can be told before any model is loaded
        if state.step >= config.run.steps and RunDirectory(path).finished:
            _send_the_rest(config, path, state)
            print(
                f"{path} is finished: {state.step} of {config.run.steps} steps are done, nothing to resume."
            )
            return 0
    with StopSignals() as stop:
        try:
            models = prepare_models(plan)
            fresh = replace(fresh, weights=models.fingerprints())
            if checkpoint is None:
                state = fresh
                directory = RunDirectory.create(path, dump_config(config))
            else:
                check_agrees(state, fresh)
                for note in differences_in_numbers(state, fresh):
                    print(f"Not bitwise what an uninterrupted run would give: {note}.")
                state = state.resumed_as(fresh)
                directory = RunDirectory.resume(path, dump_config(config), state.step)
                checkpoints.go_back(checkpoint)
            _drive(plan, models, directory, state, checkpoint, stop)
        except Interrupted as error:
            print(f"perm-ray train: {error}", file=sys.stderr)
            return 128 + (stop.received or 0)
    return 0


def _mlflow_run(directory: Path, state: RunState) -> str | None:
    """The MLflow run to go on with: this run's own, or the one that `perm-ray submit` opened for it."""
    from perm_ray.cluster.jobs import variables
    from perm_ray.tracking.mlflow_client import TrackedRun

    tracked = TrackedRun.read(directory)  # newer than the checkpoint's, which may have been made before
    own = tracked.run_id if tracked is not None else state.mlflow_run_id
    return own or os.environ.get(variables.MLFLOW_RUN_ID)


def _send_the_rest(config: Config, path: Path, state: RunState) -> None:
    """Give MLflow what it did not take while the run went on."""
    from perm_ray.tracking.mlflow_tracker import open_tracker
    from perm_ray.tracking.spool import SPOOL_NAME

    if config.tracking.mlflow and (path / SPOOL_NAME).is_file():
        run_id = _mlflow_run(path, state)
        open_tracker(config, path.name, path, run_id, {**state.contents, **state.weights}).finish("FINISHED")


def _drive(
    plan: RunPlan,
    models: Models,
    directory: RunDirectory,
    state: RunState,
    checkpoint: Path | None,
    stop: StopSignals,
) -> None:
    """Train, and leave nothing running and nothing unsaid, however it ends."""
    from rich.console import Console

    from perm_ray.runs.runtime import running
    from perm_ray.tracking.mlflow_tracker import open_tracker
    from perm_ray.tracking.model_registry import register_policy
    from perm_ray.tracking.progress import RunProgress
    from perm_ray.tracking.summary import print_summary, summarise
    from perm_ray.train import Driver

    console = Console()
    contents = {**state.contents, **state.weights}
    run_id = _mlflow_run(directory.path, state)
    tracker = open_tracker(plan.config, directory.name, directory.path, run_id, contents)
    status: EndState = "FAILED"
    summary_extra: dict[str, object] = {"run_directory": str(directory.path), "mlflow_uri": tracker.uri}
    started = time.monotonic()
    try:
        with RunProgress(plan.config.run.steps, state.step, console) as progress:
            progress.note(f"Run directory: {directory.path}")
            with running(plan, models, directory, tracker, progress, stop) as runtime:
                driver = Driver(runtime, state, stop, resumed=checkpoint is not None)
                if checkpoint is not None:
                    runtime.restore(state, checkpoint)
                try:
                    driver.train()
                except (Interrupted, JudgeFailureRateError):
                    driver.save()
                    runtime.checkpoints.wait()
                    progress.note(f"Resume with: perm-ray train --resume {directory.path}")
                    raise
                except Exception:
                    driver.settle()
                    raise
                summary_extra["evaluation"] = driver.evaluation
        candidates = _describe_policies(plan.config, models, directory, contents, driver)
        status = "FINISHED"
    except Interrupted:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
        wall_time_s = state.wall_time_s + time.monotonic() - started
        summary = summarise(directory.read_metrics(), status, wall_time_s, summary_extra)
        directory.write_summary(summary)
        print_summary(summary, console)
    for candidate in candidates:
        registered = register_policy(plan.config, directory.path, candidate)
        if registered is not None:
            console.print(f"Model:  {registered}", markup=False, highlight=False, soft_wrap=True)


def _describe_policies(
    config: Config, models: Models, directory: RunDirectory, contents: Mapping[str, str], driver: Driver
) -> list[Candidate]:
    """Write the cards of the policies that were exported, the best one (if it is not the last) and the last,
    and say what the model registry needs to know of them."""
    from perm_ray.files import write_text_atomic
    from perm_ray.tracking.model_card import TrainedPolicy, heldout_reward, model_card
    from perm_ray.tracking.model_registry import Candidate, measure_of

    def describe(folder: Path, step: int, evaluation: Mapping[str, object]) -> Candidate:
        policy = TrainedPolicy(directory.name, step, contents, evaluation, driver.state.packages)
        card = model_card(config, policy)
        write_text_atomic(folder / "README.md", card)
        return Candidate(
            folder=folder,
            card=card,
            step=step,
            reward=heldout_reward(evaluation),
            measure=measure_of(config, contents),
            example=models.train_prompts[0].messages,
        )

    best = directory.best()
    earlier = [] if best is None else [describe(directory.best_policy, best.step, best.evaluation)]
    return [*earlier, describe(directory.policy, driver.state.step, driver.evaluation)]


if __name__ == "__main__":
    from perm_ray.cli.main import run_verb

    sys.exit(run_verb("train", sys.argv[1:]))
