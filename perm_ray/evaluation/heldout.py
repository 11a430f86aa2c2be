"""The judged reward on scenarios the policy was not trained on, before and after training.

The same prompts and the same random numbers are used each time, so that the difference is paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from perm_ray.evaluation.bootstrap import paired_difference
from perm_ray.types import RolloutGroup


@dataclass(frozen=True)
class HeldoutResult:
    """Means over the held-out scenarios (metric name -> value), and each scenario's mean reward.

    A scenario whose completions were all masked is missing from `rewards`."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    rewards: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The same answers as two panels see them: `graded` by the judges of the evaluation, `rewarded` by those
    that reward in training; None where both are the same."""

    graded: HeldoutResult = field(default_factory=HeldoutResult)
    rewarded: HeldoutResult | None = None

    def as_state(self) -> dict[str, Any]:
        """Return it as plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Evaluation:
        """Return what `as_state` gave."""
        rewarded = state["rewarded"]
        return cls(HeldoutResult(**state["graded"]), HeldoutResult(**rewarded) if rewarded else None)


_SAME_JUDGES = "reward and grade come from the same judges; evaluation.judge_model names one that only grades"

# What an evaluation reports of all that `rollout_metrics` knows.
_REPORTED = ("reward/mean", "reward/empathy", "reward/bystander", "format/valid", "rollout/length_mean")


def heldout_result(groups: Sequence[RolloutGroup], metrics: Mapping[str, float]) -> HeldoutResult:
    """Reduce the groups of an evaluation; `metrics` are their `rollout_metrics`."""
    scores = {name: value for name, value in metrics.items() if _is_reported(name)}
    rewards = {}
    for group in groups:
        values = [rollout.reward.value for rollout in group.rollouts if rollout.reward]
        if values:
            rewards[group.prompt.scenario.scenario_id] = fmean(values)
    return HeldoutResult(scores, rewards)


def compare_evaluations(before: Evaluation, after: Evaluation, seed: int) -> dict[str, object]:
    """Return `compare` of the grades, with that of the training judges and a warning where the two part.

    Rewards that rise while an independent judge's grades fall are the sign of over-optimisation: the policy
    learns the judges' weaknesses (Gao et al., arXiv 2210.10760).
    """
    report = compare(before.graded, after.graded, seed)
    if before.rewarded is None or after.rewarded is None:
        return report | {"note": _SAME_JUDGES}
    training = compare(before.rewarded, after.rewarded, seed)
    report["training_judges"] = training
    graded, rewarded = _mean_difference(report), _mean_difference(training)
    if graded is not None and rewarded is not None and rewarded > 0 > graded:
        report["warning"] = (
            f"the training judges' reward rose by {rewarded:.3f} while the evaluation judges' fell by "
            f"{-graded:.3f}: the policy may have learned its judges' weaknesses (over-optimisation)"
        )
    return report


def _mean_difference(report: Mapping[str, Any]) -> float | None:
    return report["difference"]["mean"] if "difference" in report else None


def compare(before: HeldoutResult, after: HeldoutResult, seed: int) -> dict[str, object]:
    """Before, after, and the paired difference of the reward with its interval, for `summary.json`."""
    shared = [scenario for scenario in before.rewards if scenario in after.rewards]
    report: dict[str, object] = {"before": dict(before.metrics), "after": dict(after.metrics)}
    if len(shared) >= 2:
        difference = paired_difference(
            [before.rewards[scenario] for scenario in shared],
            [after.rewards[scenario] for scenario in shared],
            seed=seed,
        )
        report["difference"] = {
            "mean": difference.mean,
            "low": difference.low,
            "high": difference.high,
            "pairs": difference.pairs,
        }
    return report


def _is_reported(name: str) -> bool:
    judge_mean = name.startswith("judge/") and name.endswith("/mean")
    return name in _REPORTED or judge_mean or name.startswith("slice/")
