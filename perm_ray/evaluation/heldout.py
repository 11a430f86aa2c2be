"""The judged reward on scenarios the policy was not trained on, before and after training.

The same prompts and the same random numbers are used each time, so that the difference is paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from perm_ray.evaluation.bootstrap import paired_difference
from perm_ray.types import RolloutGroup


@dataclass(frozen=True)
class HeldoutResult:
    """Means over the held-out scenarios (metric name -> value), and each scenario's mean reward.

    A scenario whose completions were all masked is missing from `rewards`."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    rewards: Mapping[str, float] = field(default_factory=dict)


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
