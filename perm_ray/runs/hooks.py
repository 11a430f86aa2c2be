"""Do what belongs to a run but not to a step: evaluate, probe the judges, keep the best policy, checkpoint.

The loop calls every hook before training, after each step and after training, in the order in which
`default_hooks` lists them. A hook returns the run's state, changed where a resume needs to know of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING

from perm_ray.evaluation.heldout import Evaluation, compare_evaluations, heldout_result
from perm_ray.rewards.advantages import check_finite
from perm_ray.runs.directory import BestPolicy
from perm_ray.runs.run_state import RunState
from perm_ray.types import Prompt

if TYPE_CHECKING:
    from perm_ray.runs.run import Run


class Hook:
    """Do nothing; the base of everything with a cadence of its own."""

    def before_training(self, state: RunState) -> RunState:
        """Run once, when the engines have the weights that training starts (or goes on) from."""
        return state

    def after_step(self, state: RunState) -> RunState:
        """Run after each step; `state.step` is the step that has just been finished."""
        return state

    def after_training(self, state: RunState) -> None:
        """Run once, after the last step."""


@dataclass(frozen=True, slots=True)
class Cadence:
    """Every how many steps something is done; 0 is never."""

    every: int

    def due(self, step: int) -> bool:
        """Return whether it is done at `step`."""
        return self.every > 0 and step % self.every == 0


@dataclass
class Evaluate(Hook):
    """Judge the held-out scenarios before training, every so many steps and after training.

    The same prompts and random numbers are used each time, so that differences are paired. A policy that
    does better than every one before it is exported, and kept unless it is that of the last step.
    `comparison` is the paired comparison of after with before, for the summary.
    """

    run: Run
    prompts: Sequence[Prompt]
    cadence: Cadence
    comparison: Mapping[str, object] = field(default_factory=dict)

    def before_training(self, state: RunState) -> RunState:
        return state if state.before else replace(state, before=self._evaluate(0).as_state())

    def after_step(self, state: RunState) -> RunState:
        if self.cadence.due(state.step) and state.step < self.run.steps:
            with self.run.clock.paused():
                self._keep_if_best(state, self._evaluate(state.step))
        return state

    def after_training(self, state: RunState) -> None:
        before = Evaluation.of_state(state.before)
        if before.graded.rewards:
            self.comparison = compare_evaluations(
                before, self._evaluate(state.step), self.run.config.run.seed
            )
        self.run.stop.check()
        if self.run.checkpoints.best_step() == self.run.steps:
            self.run.directory.forget_best()

    def _evaluate(self, step: int) -> Evaluation:
        run = self.run
        run.stop.check()
        if not self.prompts:
            return Evaluation()
        when = f"after step {step}" if step else "before training"
        run.progress.note(f"Evaluating {len(self.prompts)} held-out scenarios {when}.")
        collected = run.collector.collect(
            self.prompts,
            num_completions=run.config.evaluation.completions_per_prompt,
            step=0,  # the same random numbers each time: the difference is paired
            purpose="heldout",
            report=run.progress.phase,
        )
        check_finite(collected.groups)
        rewarded = None
        if run.graders is not None:
            rewarded = heldout_result(collected.groups, collected.reward_metrics())
            collected = run.collector.graded(collected, run.graders)
            check_finite(collected.groups)
        run.sinks.rollouts(step, collected.groups, "heldout")
        graded = heldout_result(collected.groups, collected.reward_metrics())
        named = {f"heldout/{name}": value for name, value in graded.metrics.items()}
        if rewarded is not None:
            named |= {f"heldout/training_judges/{name}": value for name, value in rewarded.metrics.items()}
        run.sinks.metrics(step, named, "heldout")
        if graded.rewards:
            run.checkpoints.rate(step, fmean(graded.rewards.values()))
        return Evaluation(graded, rewarded)

    def _keep_if_best(self, state: RunState, result: Evaluation) -> None:
        run = self.run
        if run.checkpoints.best_step() != state.step:
            return
        run.progress.phase("exporting the best policy so far")
        run.trainer.export(run.directory.best_policy)
        before = Evaluation.of_state(state.before)
        comparison = compare_evaluations(before, result, run.config.run.seed)
        run.directory.write_best(BestPolicy(state.step, comparison))


@dataclass
class ProbeJudges(Hook):
    """Put the probes to the judges, and say which attacks are rewarded more than at first."""

    run: Run

    def before_training(self, state: RunState) -> RunState:
        return self._probe(state) if state.step == 0 else state

    def after_step(self, state: RunState) -> RunState:
        with self.run.clock.paused():
            return self._probe(state)

    def _probe(self, state: RunState) -> RunState:
        run, step = self.run, state.step
        if not run.probes.due(step):
            return state
        run.stop.check()
        run.progress.note(f"Probing the judges with {len(run.probes.items)} texts.")
        probing = run.probes.look(run.judges.judge(run.probes.items))
        run.directory.write_probes(step, probing.metrics, probing.report.rows())
        run.sinks.metrics(step, probing.metrics, "probe")
        for rise in probing.rises:
            run.progress.note(
                f"An attack pays better than at first: {rise.metric} {rise.first:.2f} -> {rise.now:.2f}"
            )
        return state


@dataclass
class Checkpoint(Hook):
    """Save a checkpoint every so many steps, and after the last one."""

    run: Run
    cadence: Cadence

    def after_step(self, state: RunState) -> RunState:
        self.run.checkpoints.check()  # one that is being written has not failed
        if self.cadence.due(state.step) or state.step == self.run.steps:
            self.run.save()
        return state


@dataclass
class Export(Hook):
    """Export the trained policy, when the last checkpoint is whole: a failed export can then be resumed."""

    run: Run

    def after_training(self, state: RunState) -> None:
        del state
        self.run.checkpoints.wait()
        self.run.progress.phase("exporting the policy")
        self.run.trainer.export(self.run.directory.policy)


def default_hooks(run: Run) -> list[Hook]:
    """Return the hooks of a run's configuration, in the order in which they run."""
    config = run.config
    evaluate = Evaluate(run, run.models.heldout_prompts, Cadence(config.evaluation.every))
    return [evaluate, ProbeJudges(run), Checkpoint(run, Cadence(config.checkpoint.every)), Export(run)]
