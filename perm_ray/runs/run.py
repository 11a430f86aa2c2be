"""Build what a run is made of, and tear it down: pools, panel, trainer, experience, sinks, hooks.

Everything is started at once and waited for once (`running`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from perm_ray.cluster.calls import wait_all
from perm_ray.cluster.placement import ROLLOUT, TRAINER, Places, demands
from perm_ray.cluster.session import cluster
from perm_ray.config.schema import Config
from perm_ray.evaluation.probes.probe_report import ProbeWatch
from perm_ray.evaluation.probes.probe_set import load_probes
from perm_ray.experience import Collector, Experience
from perm_ray.judges.accounting import FailureLimit
from perm_ray.judges.panel import JudgePanel, OwnJudge
from perm_ray.judges.startup import start_graders, start_judges
from perm_ray.rollout.pool import RolloutPool
from perm_ray.runs.checkpoint import Checkpoints
from perm_ray.runs.directory import DirectorySink, RunDirectory
from perm_ray.runs.hooks import Hook, default_hooks
from perm_ray.runs.replay import FailedStep
from perm_ray.runs.run_plan import Models, RunPlan
from perm_ray.runs.run_state import RunState
from perm_ray.runs.signals import StopSignals
from perm_ray.runs.weight_sync import WeightSync
from perm_ray.tracking.ambiguous import AmbiguityRule
from perm_ray.tracking.gauges import RayGauges
from perm_ray.tracking.progress import RunProgress
from perm_ray.tracking.sinks import Sinks
from perm_ray.tracking.tracker import Tracker
from perm_ray.trainer.batching import TrainSequence
from perm_ray.trainer.group import TrainerGroup
from perm_ray.trainer.step_limits import StepLimits


class StepClock:
    """Seconds of a step and of its phases, without what hooks such as the evaluation take in between."""

    def __init__(self) -> None:
        self._phases: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Begin the first step."""
        self._began, self._paused_s = time.monotonic(), 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block as `name` of this step; a save after the last step counts to this one."""
        began = time.monotonic()
        yield
        self._phases[name] = self._phases.get(name, 0.0) + time.monotonic() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block out of the step."""
        began = time.monotonic()
        yield
        self._paused_s += time.monotonic() - began

    def lap(self) -> dict[str, float]:
        """End a step and begin the next; returns its `time/*_s` metrics."""
        now = time.monotonic()
        phases = {f"time/{name}_s": self._phases.get(name, 0.0) for name in ("train", "sync", "checkpoint")}
        whole = {"time/step_s": now - self._began - self._paused_s}
        self._began, self._paused_s, self._phases = now, 0.0, {}
        return phases | whole


@dataclass
class Run:
    """A run that is up: its parts, and where it stands. Made by `running`; the loop trains it.

    `state` is that of the last finished step.
    """

    plan: RunPlan
    models: Models
    directory: RunDirectory
    progress: RunProgress
    sinks: Sinks
    stop: StopSignals
    collector: Collector
    experience: Experience
    judges: JudgePanel | OwnJudge
    graders: JudgePanel | None
    probes: ProbeWatch
    trainer: TrainerGroup
    weight_sync: WeightSync
    checkpoints: Checkpoints
    failure_limit: FailureLimit
    state: RunState
    mlflow_run_id: Callable[[], str | None]
    hooks: Sequence[Hook] = ()
    clock: StepClock = field(default_factory=StepClock)
    _saved_step: int | None = None  # None: there is no checkpoint yet
    _started: float = field(default_factory=time.monotonic)

    @property
    def config(self) -> Config:
        return self.plan.config

    @property
    def steps(self) -> int:
        return self.config.run.steps

    @property
    def step_limits(self) -> StepLimits:
        return StepLimits(self.config.trainer.limits, self.progress.note)

    def restore(self, trainer_folder: Path) -> None:
        """Restore everything that a resumed run goes on from: this list is the whole of it.

        1. weights, optimizer and random generators: the trainer, from the checkpoint's folder;
        2. the place in the data: the experience;
        3. the judge failures of the last steps: the failure limit;
        4. step, held-out rewards before training, MLflow run and time spent: `state` itself;
        5. files of later steps are removed: `RunDirectory.resume` and `Checkpoints.go_back` did that.
        """
        self.trainer.load(trainer_folder)
        self.experience.restore(self.state.sampler)
        self.failure_limit.restore(self.state.failures)
        self._saved_step = self.state.step
        self._started -= self.state.wall_time_s

    def publish(self, version: int) -> dict[str, float]:
        """Send the trainer's weights to every engine as `version`; returns the `sync/*` metrics."""
        self.progress.phase("sync")
        with self.clock.phase("sync"):
            synced = self.weight_sync.push(version)
        self.experience.published(version)
        return synced.metrics()

    def advance(self, step: int) -> None:
        """Note that `step` is finished."""
        sampler, failures = self.experience.state(), self.failure_limit.state()
        self.state = replace(self.state, step=step, sampler=sampler, failures=failures)

    @property
    def wall_time_s(self) -> float:
        """Seconds spent on this run so far, earlier sessions included."""
        return time.monotonic() - self._started

    def save(self) -> None:
        """Begin a checkpoint of the last finished step, unless there is one already.

        The loop waits for a copy of the state; it is written while the next step runs.
        """
        if self.state.step == self._saved_step:
            return
        self.progress.phase("saving a checkpoint")
        state = replace(self.state, mlflow_run_id=self.mlflow_run_id(), wall_time_s=self.wall_time_s)
        # Not interrupted: a save that is cut off would be in the way of the next one.
        with self.clock.phase("checkpoint"), self.stop.deferred():
            self.checkpoints.save(state, self.trainer.save)
            self._saved_step = state.step

    def keep_for_replay(self, step: int, sequences: Sequence[TrainSequence], reason: str) -> Path:
        """Write the batch that a step failed on, with the newest checkpoint to replay it from."""
        self.checkpoints.finish(self.progress.note)
        file = self.directory.failed_step_file(step)
        FailedStep(step, reason, self.checkpoints.latest_name(), sequences).write(file)
        return file


@contextmanager
def running(
    plan: RunPlan,
    models: Models,
    directory: RunDirectory,
    tracker: Tracker,
    progress: RunProgress,
    stop: StopSignals,
    state: RunState,
) -> Iterator[Run]:
    """Start Ray, then everything at once, and wait once; end it all on the way out, however that is."""
    progress.phase("starting Ray")
    rows = demands(plan.config, plan.judge is not None)
    with cluster(plan.config.ray, rows, progress.note, started=stop.reinstall) as places:
        yield _start(plan, models, directory, tracker, progress, places, stop, state)


def _start(
    plan: RunPlan,
    models: Models,
    directory: RunDirectory,
    tracker: Tracker,
    progress: RunProgress,
    places: Places,
    stop: StopSignals,
    state: RunState,
) -> Run:
    config = plan.config
    seed, deterministic = config.run.seed, config.run.deterministic
    sampling = places.of(ROLLOUT, config.rollout.engine.replicas)
    backend = config.transfer_backend
    rollouts = RolloutPool(config.rollout, models.policy, seed, deterministic, sampling, backend)
    judges = (
        OwnJudge(plan.judge)
        if plan.judge is not None
        else start_judges(config, plan.perspectives, models.judges, seed, deterministic, places)
    )
    graders = start_graders(config, plan.perspectives, seed, deterministic)
    training = places.of(TRAINER, config.trainer.num_ranks)
    temperature = config.rollout.temperature
    trainer = TrainerGroup(config.trainer, models.policy, seed, config.run.steps, training, temperature)
    trainer.start_async()
    progress.phase("starting engines and trainer")
    bound = max(judges.start_timeout_s, config.rollout.engine.start_timeout_s)
    grading = graders.starting() if graders is not None else {}
    wait_all(rollouts.starting() | judges.starting() | grading, timeout_s=bound, doing="starting")
    trainer.wait_ready()
    weight_sync = WeightSync(trainer, rollouts, replace(config.sync, backend=backend))
    weight_sync.connect()
    collector = Collector(rollouts, judges, plan.perspectives, config.rewards, plan.score_maps, plan.reward)
    records = DirectorySink(directory, AmbiguityRule(config.judges.ambiguity, plan.perspectives))
    gauges = (RayGauges(directory.name),) if config.ray.address is not None else ()
    run = Run(
        plan=plan,
        models=models,
        directory=directory,
        progress=progress,
        sinks=Sinks(records, tracker, *gauges, progress),
        stop=stop,
        collector=collector,
        experience=Experience(
            collector, plan.new_sampler(), models.train_prompts, config.rollout, progress.phase
        ),
        judges=judges,
        graders=graders,
        probes=ProbeWatch(
            config.evaluation.probes,
            load_probes() if config.evaluation.probes.every else (),
            plan.perspectives,
            directory.first_probes(),
        ),
        trainer=trainer,
        weight_sync=weight_sync,
        checkpoints=Checkpoints(directory.checkpoints, config.checkpoint),
        failure_limit=FailureLimit(config.judges.max_failure_rate, config.judges.failure_window),
        state=state,
        mlflow_run_id=lambda: tracker.run_id,
    )
    run.hooks = default_hooks(run)
    return run
