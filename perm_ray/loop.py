"""Run the training loop: take judged groups, train on them, publish the weights, record, run the hooks.

The loop does not know when sampling happened: `run.experience` samples and judges inside `take(step)` (the
synchronous case), or has done so already. Synchronous training is exact: everything a step learns from was
made by the policy that the step before it published, and a run with `run.deterministic` repeats bit for bit
on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

from perm_ray.errors import LimitError, NotFiniteError
from perm_ray.experience import train_sequences
from perm_ray.rewards.advantages import check_finite
from perm_ray.runs.run import Run
from perm_ray.types import RolloutGroup


def run_steps(run: Run) -> None:
    """Train from `run.state` to `run.steps`.

    `run.state` is that of the last finished step at every moment, whatever ends the loop, so that a
    checkpoint can be saved after an exception.

    Args:
        run: A run whose engines, judges and trainer are up (`runs.run.running`).

    Raises:
        Interrupted: A signal asked the run to stop, between or within steps.
        JudgeFailureRateError: More judgments failed than `judges.max_failure_rate` allows.
        NotFiniteError: A reward, the loss or the gradient is NaN or infinite.
        LimitError: A step went past a limit of `trainer.limits` whose action is to stop.
    """
    run.publish(version=run.state.step)
    for hook in run.hooks:
        run.state = hook.before_training(run.state)
    run.clock.restart()
    for step in range(run.state.step + 1, run.steps + 1):
        run.stop.check()
        batch = run.experience.take(step)
        run.sinks.rollouts(step, batch.sampled)  # first: the failure limit may stop the run on the next line
        run.failure_limit.check(step, batch.sampled)
        with run.stop.deferred(on_signal=run.trainer.request_stop):
            metrics = batch.metrics() | _update(run, step, batch.groups) | run.publish(version=step)
            run.sinks.metrics(step, metrics | run.clock.lap())
            run.advance(step)
        for hook in run.hooks:
            run.state = hook.after_step(run.state)
    for hook in run.hooks:
        hook.after_training(run.state)


def _update(run: Run, step: int, groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Train on a step's groups and return the trainer's metrics; none when every rollout is masked.

    The limits are checked after the update and before anything is made of it: weight sync, records,
    checkpoint. A step that fails leaves its batch in the run directory, to be replayed alone.
    """
    sequences = train_sequences(groups)
    if not sequences:
        run.progress.note(f"Step {step}: every rollout is masked, the policy stays as it is.")
        return {}
    try:
        check_finite(groups)
        with run.clock.phase("train"):
            metrics = run.trainer.train_step(step, sequences)
        run.step_limits.check(step, metrics)
    except (NotFiniteError, LimitError) as error:
        file = run.keep_for_replay(step, sequences, str(error))
        raise type(error)(
            f"{error} Nothing of this step was saved. Its batch is in {file}: look at it alone with "
            f"perm-ray train --replay {file}"
        ) from error
    return metrics
