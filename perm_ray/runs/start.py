"""Start, resume and finish a run: everything around the loop that is not a step.

`train_plan` is where the command line and the library meet. However a run ends, nothing is left running,
the last finished step is saved where that can be, and the summary says how it ended.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from perm_ray.cluster.jobs import variables
from perm_ray.config.load import dump_config, load_config
from perm_ray.config.schema import Config
from perm_ray.errors import ConfigError, Interrupted, JudgeFailureRateError
from perm_ray.experience import RewardFunction
from perm_ray.files import write_text_atomic
from perm_ray.judges.judge import Judge
from perm_ray.judges.startup import Judges
from perm_ray.loop import run_steps
from perm_ray.runs.checkpoint import Checkpoints, checkpoint_of
from perm_ray.runs.directory import RunDirectory, run_path
from perm_ray.runs.hooks import Evaluate
from perm_ray.runs.run import Run, running
from perm_ray.runs.run_plan import Models, RunPlan, plan_run, prepare_models
from perm_ray.runs.run_state import RunState, check_agrees, numeric_warnings
from perm_ray.runs.signals import StopSignals
from perm_ray.tracking.answers import answer_pairs, print_answers
from perm_ray.tracking.mlflow_client import TrackedRun
from perm_ray.tracking.mlflow_sender import is_behind, open_tracker
from perm_ray.tracking.model_card import TrainedPolicy, heldout_reward, model_card
from perm_ray.tracking.model_registry import Candidate, measure_of, register_policy
from perm_ray.tracking.progress import RunProgress
from perm_ray.tracking.summary import print_summary, summarise
from perm_ray.tracking.tracker import EndState, Tracker

_SEND_THE_REST_S = 120.0  # nothing else is waiting then


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run that came to its end.

    `policy` is a folder that transformers and vLLM load; `summary` is that of `summary.json`, such as
    `summary["evaluation"]["difference"]`; `directory` has everything else.
    """

    directory: Path
    policy: Path
    summary: Mapping[str, Any]


def train(
    config: Config | str | Path | None = None,
    *,
    steps: int | None = None,
    reward: RewardFunction | None = None,
    judges: Judge | None = None,
) -> FinishedRun:
    """Train a policy with rewards from judges, and wait for the end.

    Example:
        >>> run = perm_ray.train("local", steps=8)
        >>> run.summary["evaluation"]["difference"]["mean"]
        0.12

    Args:
        config: A configuration, or what `load_config` makes one of.
        steps: The number of training steps, in the place of `run.steps`.
        reward: A function from a completion's judgments (by perspective) to a number, in the place of PERM's
            reward; None masks the rollout.
        judges: An object of your own that judges (`judges.judge.Judge`), in the place of the judges of the
            configuration. It is asked in this process.

    Raises:
        UserError: Something in the configuration cannot be used as it is.
        RunError: The run could not go on; its directory can be resumed.
    """
    if isinstance(judges, Judges):
        raise ConfigError(
            "judges must be an object of your own, found perm_ray.Judges, which holds a Ray cluster: leave "
            "it out, since a run starts the judges of its configuration itself."
        )
    whole = config if isinstance(config, Config) else load_config(config)
    if steps is not None:
        whole = replace(whole, run=replace(whole.run, steps=steps))
    directory = train_plan(plan_run(whole, judges, reward), None, StopSignals())
    summary = json.loads(directory.summary_file.read_text(encoding="utf-8"))
    return FinishedRun(directory.path, directory.policy, summary)


def train_plan(plan: RunPlan, resume: Path | None, stop: StopSignals) -> RunDirectory:
    """Train a checked plan, from the start or from the checkpoint of `resume`.

    Args:
        plan: Made by `plan_run`.
        resume: A run directory, or the folder of one of its checkpoints; None starts anew.
        stop: Says when the run was asked to stop.

    Returns:
        The directory of the finished run.

    Raises:
        CheckpointError: `resume` is no checkpoint, or was made with another configuration, data or model.
        Interrupted: The run was asked to stop; it can be resumed.
    """
    config = plan.config
    path = run_path(config.run, datetime.now())
    checkpoints = Checkpoints(path / "checkpoints", config.checkpoint)
    fresh = RunState.new(plan.new_sampler().state(), plan.contents(), config)
    state, checkpoint = load_checkpoint(checkpoints, resume, fresh)
    if state.step >= config.run.steps and RunDirectory(path).finished:
        _send_the_rest(config, path, state)
        print(f"{path} is finished: {state.step} of {config.run.steps} steps are done, nothing to resume.")
        return RunDirectory(path)
    models = prepare_models(plan)
    fresh = replace(fresh, weights=models.fingerprints())
    directory, state = open_directory(config, checkpoints, fresh, state, checkpoint)
    _train(plan, models, directory, state, checkpoint, stop)
    return directory


def load_checkpoint(
    checkpoints: Checkpoints, resume: Path | None, fresh: RunState
) -> tuple[RunState, Path | None]:
    """Return the state to go on from and the trainer's folder of its checkpoint: `fresh` and None at first.

    What can be compared before any model is loaded is compared. Raises `CheckpointError`.
    """
    if resume is None:
        return fresh, None
    state, checkpoint = checkpoints.load(checkpoint_of(resume)[1])
    check_agrees(state.without_weights(), fresh)
    return state, checkpoint


def open_directory(
    config: Config, checkpoints: Checkpoints, fresh: RunState, state: RunState, checkpoint: Path | None
) -> tuple[RunDirectory, RunState]:
    """Make the run directory, or bring it back to a checkpoint; `fresh` knows the weights by now."""
    path = checkpoints.run_directory
    if checkpoint is None:
        return RunDirectory.create(path, dump_config(config)), fresh
    check_agrees(state, fresh)
    for warning in numeric_warnings(state, fresh):
        print(f"Not bitwise what an uninterrupted run would give: {warning}.")
    state = state.resumed_as(fresh)
    directory = RunDirectory.resume(path, dump_config(config), state.step)
    checkpoints.go_back(checkpoint)
    return directory, state


def _mlflow_run(directory: Path, state: RunState) -> str | None:
    """Return the MLflow run to go on with: this run's own, or the one that `perm-ray submit` opened."""
    tracked = TrackedRun.read(directory)  # newer than the checkpoint's, which may have been made before
    own = tracked.run_id if tracked is not None else state.mlflow_run_id
    return own or os.environ.get(variables.MLFLOW_RUN_ID)


def _send_the_rest(config: Config, path: Path, state: RunState) -> None:
    """Give MLflow what it did not take while the run went on."""
    if config.tracking.mlflow and is_behind(path):
        run_id = _mlflow_run(path, state)
        tracker = open_tracker(config, path.name, path, run_id, {**state.contents, **state.weights})
        tracker.finish("FINISHED", timeout_s=_SEND_THE_REST_S)


@dataclass
class Recording:
    """Everything that records a run; `extra` goes into its summary."""

    tracker: Tracker
    progress: RunProgress
    console: Console
    extra: dict[str, object]


@contextmanager
def recorded(
    config: Config, directory: RunDirectory, state: RunState, total_steps: int
) -> Iterator[Recording]:
    """Track and show a run, and leave nothing unsaid, however it ends."""
    console = Console()
    contents = {**state.contents, **state.weights}
    run_id = _mlflow_run(directory.path, state)
    tracker = open_tracker(config, directory.name, directory.path, run_id, contents)
    status: EndState = "FAILED"
    extra: dict[str, object] = {"run_directory": str(directory.path), "mlflow_uri": tracker.uri}
    started = time.monotonic()
    try:
        with RunProgress(total_steps, state.step, console) as progress:
            progress.note(f"Run directory: {directory.path}")
            yield Recording(tracker, progress, console, extra)
        status = "FINISHED"
    except Interrupted:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
        wall_time_s = state.wall_time_s + time.monotonic() - started
        summary = summarise(directory.read_metrics(), status, wall_time_s, extra)
        directory.write_summary(summary)
        print_summary(summary, console)


def _train(
    plan: RunPlan,
    models: Models,
    directory: RunDirectory,
    state: RunState,
    checkpoint: Path | None,
    stop: StopSignals,
) -> None:
    """Train, and leave nothing running, however it ends."""
    contents = {**state.contents, **state.weights}
    with recorded(plan.config, directory, state, plan.config.run.steps) as record:
        with running(plan, models, directory, record.tracker, record.progress, stop, state) as run:
            if checkpoint is not None:
                run.restore(checkpoint)
            resume = f"Resume with: perm-ray train --resume {directory.path}"
            with saved_on_failure(run.save, run.checkpoints, run.progress.note, resume):
                run_steps(run)
            record.extra["evaluation"] = next(h.comparison for h in run.hooks if isinstance(h, Evaluate))
            pairs = answer_pairs(directory.samples, run.state.step, plan.config.run.seed)
            record.extra["answers"] = [asdict(pair) for pair in pairs]
        candidates = _describe_policies(run, contents, record.extra["evaluation"])
    print_answers(pairs, record.console)
    for candidate in candidates:
        registered = register_policy(plan.config, directory.path, candidate)
        if registered is not None:
            record.console.print(f"Model:  {registered}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def saved_on_failure(
    save: Callable[[], None], checkpoints: Checkpoints, note: Callable[[str], None], how_to_resume: str
) -> Iterator[None]:
    """After an error in the block save what can be saved, and say how to resume."""
    try:
        yield
    except (Interrupted, JudgeFailureRateError):
        save()
        checkpoints.wait()
        note(how_to_resume)
        raise
    except Exception:
        checkpoints.finish(note)
        if checkpoints.latest_name() is not None:
            note(how_to_resume)
        raise


def _describe_policies(run: Run, contents: Mapping[str, str], evaluation: object) -> list[Candidate]:
    """Write the model cards of the exported policies, and return what the model registry needs to know.

    The best policy on held-out scenarios comes first, if it is not the last one.
    """

    def describe(folder: Path, step: int, evaluation: Mapping[str, object]) -> Candidate:
        policy = TrainedPolicy(run.directory.name, step, contents, evaluation, run.state.packages)
        card = model_card(run.config, policy)
        write_text_atomic(folder / "README.md", card)
        return Candidate(
            folder=folder,
            card=card,
            step=step,
            reward=heldout_reward(evaluation),
            measure=measure_of(run.config, contents),
            example=run.models.train_prompts[0].messages,
        )

    assert isinstance(evaluation, Mapping)
    best = run.directory.best()
    earlier = [] if best is None else [describe(run.directory.best_policy, best.step, best.evaluation)]
    return [*earlier, describe(run.directory.policy, run.state.step, evaluation)]
