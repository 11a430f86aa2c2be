"""Fine-tune a model on examples: the supervised objective in the trainer of `train`, nothing else started.

`perm-ray finetune` learns from demonstrations, `perm-ray judge train` from ratings; both hand their units
(`examples.py`) to `finetune`. The run directory, its checkpoints and what is tracked are those of `train`,
with the trained model in `model/`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from perm_ray.cluster.placement import TRAINER, Demand, check_gpus, check_local_resources, demands, reserve
from perm_ray.cluster.session import start_ray, stop_ray
from perm_ray.config.schema import Config
from perm_ray.errors import Interrupted
from perm_ray.files import fingerprint
from perm_ray.runs.checkpoint import Checkpoints
from perm_ray.runs.directory import DirectorySink, RunDirectory, run_path
from perm_ray.runs.examples import Unit, batches_of
from perm_ray.runs.run_state import RunState
from perm_ray.runs.signals import StopSignals
from perm_ray.runs.start import Recording, load_checkpoint, open_directory, recorded
from perm_ray.tracking.ambiguous import AmbiguityRule
from perm_ray.tracking.sinks import Sinks
from perm_ray.trainer.batching import Task, TrainSequence
from perm_ray.trainer.group import TrainerGroup
from perm_ray.trainer.step_limits import StepLimits

_NAMES = {
    "policy/loss": "finetune/loss",
    "policy/grad_norm": "finetune/grad_norm",
    "policy/lr": "finetune/lr",
}


@dataclass(frozen=True)
class Examples:
    """What a model learns from: rendered, checked, and named by digest for a resume.

    `epochs` are the units of each pass over the data; `heldout`, from other scenarios, measures the loss
    before and after. `task` says whether they are demonstrations and ratings, or preferences.
    """

    model: Path
    epochs: Sequence[Sequence[Unit]]
    heldout: Sequence[Unit]
    contents: Mapping[str, str]
    task: Task = "supervised"


def trainer_only(config: Config) -> Config:
    """Return the configuration with one update a step and no reference model, as this objective needs."""
    objective = replace(config.trainer.objective, epochs=1, minibatches=1, kl_coef=0.0)
    return replace(config, trainer=replace(config.trainer, objective=objective))


def check_finetune(config: Config) -> None:
    """Refuse resources that no trainer rank could have. Raises `ConfigError`."""
    check_gpus(config)
    check_local_resources(config.ray, _demands(config))


def finetune(config: Config, examples: Examples, resume: Path | None, stop: StopSignals) -> RunDirectory:
    """Train on the examples, from the start or from the checkpoint of `resume`.

    Returns:
        The directory of the finished run; the model is in `model/` in it, its adapter beside it.

    Raises:
        CheckpointError: `resume` is no checkpoint, or was made from something else.
        Interrupted: The run was asked to stop; it can be resumed.
    """
    config = trainer_only(config)
    path = run_path(config.run, datetime.now())
    checkpoints = Checkpoints(path / "checkpoints", config.checkpoint)
    fresh = RunState.new({}, examples.contents, config)
    state, checkpoint = load_checkpoint(checkpoints, resume, fresh)
    fresh = replace(fresh, weights={"weights of the model at the start": fingerprint(examples.model)})
    directory, state = open_directory(config, checkpoints, fresh, state, checkpoint)
    batches = batches_of(examples.epochs, config.finetune.batch_size, config.run.seed)
    with recorded(config, directory, state, len(batches)) as record:
        rows = _demands(config)
        try:
            record.progress.phase("starting Ray")
            start_ray(config.ray, rows)
            stop.reinstall()
            places = reserve(config.ray, rows, record.progress.note)
            trainer = TrainerGroup(
                config.trainer,
                examples.model,
                config.run.seed,
                len(batches),
                places.of(TRAINER, config.trainer.num_ranks),
                task=examples.task,
            )
            trainer.start_async()
            record.progress.phase("starting the trainer")
            trainer.wait_ready()
            if checkpoint is not None:
                trainer.load(checkpoint)
            run = _Finetune(config, directory, record, stop, trainer, checkpoints, state, batches)
            run.train([sequence for unit in examples.heldout for sequence in unit])
        finally:
            stop_ray()
    return directory


def _demands(config: Config) -> list[Demand]:
    return [row for row in demands(config, own_judge=True) if row.role == TRAINER]


class _Finetune:
    """A run that is up. `state` is that of the last finished step."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        record: Recording,
        stop: StopSignals,
        trainer: TrainerGroup,
        checkpoints: Checkpoints,
        state: RunState,
        batches: Sequence[Sequence[TrainSequence]],
    ) -> None:
        self._config = config
        self._directory = directory
        self._record = record
        self._stop = stop
        self._trainer = trainer
        self._checkpoints = checkpoints
        self._batches = batches
        self._state = state
        self._saved_step = state.step
        self._began = time.monotonic() - state.wall_time_s
        self._limits = StepLimits(config.trainer.limits, record.progress.note)
        rule = AmbiguityRule(config.judges.ambiguity, {})
        self._sinks = Sinks(DirectorySink(directory, rule), record.tracker, record.progress)

    def train(self, heldout: Sequence[TrainSequence]) -> None:
        """Train on every batch that is left; save what can be saved when it ends early."""
        try:
            self._steps(heldout)
        except Interrupted:
            self._save()
            self._checkpoints.wait()
            self._record.progress.note(f"Resume with --resume {self._directory.path}")
            raise
        except Exception:
            if self._checkpoints.latest_name() is not None:
                self._record.progress.note(f"Resume with --resume {self._directory.path}")
            raise

    def _steps(self, heldout: Sequence[TrainSequence]) -> None:
        config, total = self._config, len(self._batches)
        if not self._state.before and heldout:
            self._state = replace(self._state, before={"loss": self._heldout_loss(0, heldout)})
        for step in range(self._state.step + 1, total + 1):
            self._stop.check()
            began = time.monotonic()
            sequences = self._batches[step - 1]
            with self._stop.deferred(on_signal=self._trainer.request_stop):
                metrics = self._trainer.train_step(step, sequences)
                self._limits.check(step, metrics)
                taken_s = time.monotonic() - began
                named = {new: metrics[name] for name, new in _NAMES.items()}
                tokens = {"finetune/tokens_per_s": sum(map(len, sequences)) / taken_s}
                others = {name: value for name, value in metrics.items() if name.startswith("trainer/")}
                self._sinks.metrics(step, named | tokens | others | {"time/step_s": taken_s})
                self._state = replace(self._state, step=step)
            self._checkpoints.check()
            if (config.checkpoint.every and step % config.checkpoint.every == 0) or step == total:
                self._save()
            if heldout and config.finetune.every and step % config.finetune.every == 0 and step < total:
                self._heldout_loss(step, heldout)
        if heldout:
            after = {"loss": self._heldout_loss(total, heldout)}
            self._record.extra["evaluation"] = {"before": dict(self._state.before), "after": after}
        self._checkpoints.wait()
        self._record.progress.phase("exporting the model")
        self._trainer.export(self._directory.path / "model")

    def _heldout_loss(self, step: int, sequences: Sequence[TrainSequence]) -> float:
        """Return the mean negative log-likelihood of a held-out target, in nats."""
        self._record.progress.phase("measuring the held-out loss")
        loss = self._trainer.evaluate(sequences)
        self._sinks.metrics(step, {"heldout/loss": loss}, "heldout")
        return loss

    def _save(self) -> None:
        if self._state.step == self._saved_step:
            return
        wall_time_s = time.monotonic() - self._began
        run_id = self._record.tracker.run_id
        state = replace(self._state, mlflow_run_id=run_id, wall_time_s=wall_time_s)
        with self._stop.deferred():
            self._checkpoints.save(state, self._trainer.save)
        self._saved_step = state.step
