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

from perm_ray.cluster.placement import TRAINER, check_gpus, check_local_resources, trainer_demand
from perm_ray.cluster.session import cluster
from perm_ray.config.schema import Config
from perm_ray.files import fingerprint
from perm_ray.runs.checkpoint import Checkpoints
from perm_ray.runs.directory import DirectorySink, RunDirectory, run_path
from perm_ray.runs.examples import Unit, batches_of
from perm_ray.runs.run_state import RunState
from perm_ray.runs.signals import StopSignals
from perm_ray.runs.start import Recording, load_checkpoint, open_directory, recorded, saved_on_failure
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
    """The data that a model learns from: rendered, checked, and named by digest for a resume.

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
    check_local_resources(config.ray, [trainer_demand(config)])


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
        record.progress.phase("starting Ray")
        rows = [trainer_demand(config)]
        with cluster(config.ray, rows, record.progress.note, started=stop.reinstall) as places:
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
            _Finetune(config, directory, record, stop, trainer, checkpoints, state, batches).train(
                [sequence for unit in examples.heldout for sequence in unit]
            )
    return directory


@dataclass
class _Finetune:
    """A run that is up. `state` is that of the last finished step."""

    config: Config
    directory: RunDirectory
    record: Recording
    stop: StopSignals
    trainer: TrainerGroup
    checkpoints: Checkpoints
    state: RunState
    batches: Sequence[Sequence[TrainSequence]]

    def __post_init__(self) -> None:
        self._saved_step = self.state.step
        self._began = time.monotonic() - self.state.wall_time_s
        self._limits = StepLimits(self.config.trainer.limits, self.record.progress.note)
        records = DirectorySink(self.directory, AmbiguityRule(self.config.judges.ambiguity, {}))
        self._sinks = Sinks(records, self.record.tracker, self.record.progress)

    def train(self, heldout: Sequence[TrainSequence]) -> None:
        """Train on every batch that is left; save what can be saved when it ends early."""
        resume = f"Resume with --resume {self.directory.path}"
        with saved_on_failure(self._save, self.checkpoints, self.record.progress.note, resume):
            self._steps(heldout)

    def _steps(self, heldout: Sequence[TrainSequence]) -> None:
        config, total = self.config, len(self.batches)
        if not self.state.before and heldout:
            self.state = replace(self.state, before={"loss": self._heldout_loss(0, heldout)})
        for step in range(self.state.step + 1, total + 1):
            self.stop.check()
            began = time.monotonic()
            sequences = self.batches[step - 1]
            with self.stop.deferred(on_signal=self.trainer.request_stop):
                metrics = self.trainer.train_step(step, sequences)
                self._limits.check(step, metrics)
                taken_s = time.monotonic() - began
                named = {new: metrics[name] for name, new in _NAMES.items()}
                tokens = {"finetune/tokens_per_s": sum(map(len, sequences)) / taken_s}
                others = {name: value for name, value in metrics.items() if name.startswith("trainer/")}
                self._sinks.metrics(step, named | tokens | others | {"time/step_s": taken_s})
                self.state = replace(self.state, step=step)
            self.checkpoints.check()
            if (config.checkpoint.every and step % config.checkpoint.every == 0) or step == total:
                self._save()
            if heldout and config.finetune.every and step % config.finetune.every == 0 and step < total:
                self._heldout_loss(step, heldout)
        if heldout:
            after = {"loss": self._heldout_loss(total, heldout)}
            self.record.extra["evaluation"] = {"before": dict(self.state.before), "after": after}
        self.checkpoints.wait()
        self.record.progress.phase("exporting the model")
        self.trainer.export(self.directory.path / "model")

    def _heldout_loss(self, step: int, sequences: Sequence[TrainSequence]) -> float:
        """Return the mean negative log-likelihood of a held-out target, in nats."""
        self.record.progress.phase("measuring the held-out loss")
        loss = self.trainer.evaluate(sequences)
        self._sinks.metrics(step, {"heldout/loss": loss}, "heldout")
        return loss

    def _save(self) -> None:
        if self.state.step == self._saved_step:
            return
        wall_time_s = time.monotonic() - self._began
        run_id = self.record.tracker.run_id
        state = replace(self.state, mlflow_run_id=run_id, wall_time_s=wall_time_s)
        with self.stop.deferred():
            self.checkpoints.save(state, self.trainer.save)
        self._saved_step = state.step
