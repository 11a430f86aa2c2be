"""The synchronous loop: sample, judge, train, sync, record; then the next step.

Everything a step produces was made by the policy that the step before it left behind, and the next
step waits for the weights: exact, and repeatable bit for bit on CPU with `run.deterministic`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

from perm_ray.errors import LimitError, NotFiniteError, RunError
from perm_ray.evaluation.heldout import HeldoutResult, compare, heldout_result
from perm_ray.experience import Collected, check_finite
from perm_ray.runs.directory import BestPolicy
from perm_ray.runs.replay import FailedStep
from perm_ray.runs.run_state import RunState
from perm_ray.runs.runtime import Runtime
from perm_ray.runs.signals import StopSignals
from perm_ray.tracking.rollout_metrics import rollout_metrics
from perm_ray.tracking.slices import slice_metrics
from perm_ray.trainer.batching import TrainSequence
from perm_ray.trainer.step_limits import exceeded
from perm_ray.types import Prompt, RolloutGroup


class Driver:
    """Runs the loop from `state`, which is always that of the last finished step."""

    def __init__(self, run: Runtime, state: RunState, stop: StopSignals, resumed: bool = False) -> None:
        self._run = run
        self._stop = stop
        self._started = time.monotonic() - state.wall_time_s
        self._saved_step = state.step if resumed else None  # None: there is no checkpoint yet
        self._save_s = 0.0
        self._step_began = time.monotonic()
        self.state = state
        self.evaluation: dict[str, object] = {}

    def train(self) -> None:
        """All steps that are left. Raises `Interrupted` between or within steps; `save` works after it."""
        run, config = self._run, self._run.config
        run.weight_sync.push(self.state.step)
        if not self.state.before:
            self.state = replace(self.state, before=asdict(self._evaluate(step=0)))
            self._probe(step=0)
        self._step_began = time.monotonic()
        for step in range(self.state.step + 1, config.run.steps + 1):
            self._step(step)
            if config.evaluation.every and step % config.evaluation.every == 0 and step < config.run.steps:
                self._keep_if_best(step, self._evaluate(step))
            self._probe(step)
            self._step_began = time.monotonic()
            if config.checkpoint.every and step % config.checkpoint.every == 0:
                self.save()
        self.save()
        before = HeldoutResult(**self.state.before)
        if before.rewards:
            self.evaluation = compare(before, self._evaluate(config.run.steps), config.run.seed)
        self._stop.check()
        if run.checkpoints.best_step() == config.run.steps:
            run.directory.forget_best()
        run.progress.phase("exporting the policy")
        run.trainer.export(run.directory.policy)
        run.checkpoints.wait()

    @property
    def wall_time_s(self) -> float:
        """Time spent on this run so far, earlier sessions included."""
        return time.monotonic() - self._started

    def save(self) -> None:
        """Begin a checkpoint of the last finished step, unless there is one already. The loop waits for a
        copy of the state; it is written while the next step runs."""
        if self.state.step == self._saved_step:
            return
        run = self._run
        run.progress.phase("saving a checkpoint")
        state = replace(self.state, mlflow_run_id=run.tracker.run_id, wall_time_s=self.wall_time_s)
        began = time.monotonic()
        with self._stop.deferred():  # a save that is cut off would be in the way of the next one
            run.checkpoints.save(state, run.trainer.save)
            self._saved_step = state.step
        self._save_s += time.monotonic() - began

    def settle(self) -> None:
        """After an error: let the checkpoint that is being written become whole, or say why it did not.
        The run ends with the error it had."""
        try:
            self._run.checkpoints.wait()
        except RunError as error:
            self._run.progress.note(str(error))

    def _step(self, step: int) -> None:
        run = self._run
        self._stop.check()
        run.checkpoints.check()
        collected = self._collect(step)
        # Also of a step that the next line ends.
        run.directory.write_samples(step, collected.sampled, run.ambiguity)
        run.failure_limit.check(step, collected.sampled)
        with self._stop.deferred(hurry=run.trainer.request_stop):
            training = time.monotonic()
            run.progress.phase("train")
            trained = self._update(step, collected.groups)
            train_s = time.monotonic() - training
            run.progress.phase("sync")
            synced = run.weight_sync.push(version=step)
            metrics = rollout_metrics(collected.sampled) | slice_metrics(collected.sampled)
            metrics |= dict(collected.load_metrics) | trained | synced.metrics()
            metrics["rollout/tokens_per_s"] = metrics["rollout/tokens"] / collected.generate_s
            metrics |= {
                "group/resampled": float(collected.resampled),
                "time/generate_s": collected.generate_s,
                "time/judge_s": collected.judge_s,
                "time/train_s": train_s,
                "time/sync_s": synced.seconds,
                "time/checkpoint_s": self._save_s,  # what the loop waited for, of saves before this step
                "time/step_s": self._lap_s(),
            }
            self._save_s = 0.0
            self._record(step, metrics)
            shown_every = run.config.tracking.samples.every
            if shown_every and step % shown_every == 0:
                run.tracker.log_rollouts(step, collected.sampled)
            self.state = replace(self.state, step=step, sampler=run.sampler.state())

    def _collect(self, step: int) -> Collected:
        run, rollout = self._run, self._run.config.rollout
        drawn: set[int] = set()

        def draw(count: int) -> list[Prompt]:
            """The next prompts. One that the step has already, where an epoch ends in it, is passed over."""
            fresh = [index for index in run.sampler.next_batch(count) if index not in drawn]
            drawn.update(fresh)
            return [run.models.train_prompts[index] for index in fresh]

        return run.collector.collect_varied(
            draw,
            num_prompts=rollout.prompts_per_step,
            max_resamples=rollout.max_resamples,
            num_completions=rollout.completions_per_prompt,
            step=step,
            report=run.progress.phase,
        )

    def _update(self, step: int, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        sequences = train_sequences(groups)
        if not sequences:
            self._run.progress.note(f"Step {step}: every rollout is masked, the policy stays as it is.")
            return {}
        try:
            check_finite(groups)
            metrics = self._run.trainer.train_step(step, sequences)
            self._check_limits(step, metrics)
        except (NotFiniteError, LimitError) as error:
            file = self._keep_for_replay(step, sequences, str(error))
            raise type(error)(
                f"{error} Nothing of this step was saved. Its batch is in {file}: look at it alone with "
                f"perm-ray train --replay {file}"
            ) from error
        return metrics

    def _check_limits(self, step: int, metrics: Mapping[str, float]) -> None:
        """After the update and before anything is made of it: weight sync, records, a checkpoint."""
        limits = self._run.config.trainer.limits
        over = exceeded(metrics, limits)
        if over and limits.action == "stop":
            raise LimitError(f"Step {step} went past a limit: {' and '.join(over)}.")
        for sentence in over:
            self._run.progress.note(f"Step {step}: {sentence}.")

    def _keep_for_replay(self, step: int, sequences: Sequence[TrainSequence], reason: str) -> Path:
        """Write down the batch, and the newest checkpoint that it can be replayed from."""
        self.settle()
        file = self._run.directory.failed_step_file(step)
        FailedStep(step, reason, self._run.checkpoints.latest_name(), sequences).write(file)
        return file

    def _lap_s(self) -> float:
        """Since the last step's end: so a step's time has what was written down after the one before."""
        began, self._step_began = self._step_began, time.monotonic()
        return self._step_began - began

    def _record(self, step: int, metrics: dict[str, float]) -> None:
        run = self._run
        run.directory.append_metrics(step, metrics)
        run.tracker.log_step(step, metrics)
        if run.gauges is not None:
            run.gauges.set(step, metrics)
        run.progress.step_done(step, metrics)

    def _evaluate(self, step: int) -> HeldoutResult:
        run = self._run
        self._stop.check()
        if not run.models.heldout_prompts:
            return HeldoutResult()
        when = f"after step {step}" if step else "before training"
        run.progress.note(f"Evaluating {len(run.models.heldout_prompts)} held-out scenarios {when}.")
        collected = run.collector.collect(
            run.models.heldout_prompts,
            num_completions=run.config.evaluation.completions_per_prompt,
            step=0,  # the same random numbers each time: the difference is paired
            purpose="heldout",
            report=run.progress.phase,
        )
        run.directory.write_heldout(step, collected.groups, run.ambiguity)
        check_finite(collected.groups)
        metrics = rollout_metrics(collected.groups) | slice_metrics(collected.groups)
        result = heldout_result(collected.groups, metrics)
        run.tracker.log_step(step, {f"heldout/{name}": value for name, value in result.metrics.items()})
        if result.rewards:
            run.checkpoints.rate(step, fmean(result.rewards.values()))
        return result

    def _keep_if_best(self, step: int, result: HeldoutResult) -> None:
        """Export the policy of a step that did better on the held-out scenarios than every one before."""
        run = self._run
        if run.checkpoints.best_step() != step:
            return
        run.progress.phase("exporting the best policy so far")
        run.trainer.export(run.directory.best_policy)
        before = HeldoutResult(**self.state.before)
        run.directory.write_best(BestPolicy(step, compare(before, result, run.config.run.seed)))

    def _probe(self, step: int) -> None:
        """Put the probes to the judges, if it is time, and say which attacks pay better than at first."""
        run = self._run
        if not run.probes.due(step):
            return
        self._stop.check()
        run.progress.note(f"Probing the judges with {len(run.probes.items)} texts.")
        probing = run.probes.look(run.session.judge(run.probes.items))
        run.directory.write_probes(step, probing.metrics, probing.report.rows())
        run.tracker.log_step(step, probing.metrics)
        for rise in probing.rises:
            run.progress.note(
                f"An attack pays better than at first: {rise.metric} {rise.first:.2f} -> {rise.now:.2f}"
            )


def train_sequences(groups: Sequence[RolloutGroup]) -> list[TrainSequence]:
    """What the trainer learns from: every rollout that is not masked, with its sampled token ids."""
    sequences = []
    for group in groups:
        for rollout, advantage in zip(group.rollouts, group.advantages, strict=True):
            completion = rollout.completion
            if not rollout.masked and completion.token_ids:
                sequences.append(TrainSequence.of(group.prompt.token_ids, completion.spans, advantage))
    return sequences
