"""Rewards and scores by the scenarios' tags: is every language and culture served? Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from perm_ray.tracking.samples import RolloutRow
from perm_ray.types import Rollout, RolloutGroup, Scenario

TAGS = ("language", "culture")
_NOT_IN_A_NAME = re.compile(r"[^\w .-]")  # what a metric's name may not hold


def slice_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """`slice/<tag>/<value>/{reward,count,<perspective>}` for each tag's values that occur.

    Means are over what has a reward or a score; `count` is the rollouts of the slice. Scenarios without
    the tag are in no slice of it.
    """
    slices: defaultdict[str, list[Rollout]] = defaultdict(list)
    for group in groups:
        for name in slice_names(group.prompt.scenario):
            slices[name] += group.rollouts
    metrics: dict[str, float] = {}
    for name, rollouts in sorted(slices.items()):
        values: defaultdict[str, list[float]] = defaultdict(list)
        for rollout in rollouts:
            if rollout.reward is not None:
                values["reward"].append(rollout.reward.value)
            for perspective, judgment in rollout.judgments.items():
                if judgment.score is not None:
                    values[perspective].append(judgment.score)
        metrics[f"slice/{name}/count"] = float(len(rollouts))
        metrics |= {f"slice/{name}/{what}": fmean(found) for what, found in values.items()}
    return metrics


def slice_names(scenario: Scenario | RolloutRow) -> list[str]:
    """Return the slices that a scenario is in, such as `language/pt-br`."""
    tags = {tag: getattr(scenario, tag) for tag in TAGS}
    return [f"{tag}/{_NOT_IN_A_NAME.sub('_', value)}" for tag, value in tags.items() if value]
