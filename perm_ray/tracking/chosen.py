"""Which of a step's rollouts a person should read: the extremes, the disputed, the changed, the failed. Pure.

Everything is in `samples/` of the run directory; MLflow gets a dozen a step, and these are they.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from perm_ray.types import Prompt, Rollout, RolloutGroup, Status


@dataclass(frozen=True, slots=True)
class Chosen:
    """A rollout and why it was chosen."""

    prompt: Prompt
    rollout: Rollout
    advantage: float
    why: str


def choose(groups: Sequence[RolloutGroup], earlier: Mapping[str, float], count: int) -> list[Chosen]:
    """At most `count` rollouts, each once, the most telling first.

    `earlier` has the mean reward of each scenario when it was last looked at (`mean_rewards`). What is
    left of `count` after the reasons below goes to rollouts spread over the range of rewards.
    """
    entries = [
        Chosen(group.prompt, rollout, advantage, "")
        for group in groups
        for rollout, advantage in zip(group.rollouts, group.advantages, strict=True)
    ]
    found: dict[int, Chosen] = {}
    for entry, why in (*_reasons(groups, entries, earlier), *_spread(entries, count)):
        if len(found) == count:
            break
        found.setdefault(id(entry), Chosen(entry.prompt, entry.rollout, entry.advantage, why))
    return list(found.values())


def mean_rewards(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Each scenario's mean reward; one whose rollouts are all masked has none."""
    means = {}
    for group in groups:
        rewards = [rollout.reward.value for rollout in group.rollouts if rollout.reward is not None]
        if rewards:
            means[group.prompt.scenario.scenario_id] = fmean(rewards)
    return means


def disagreement(rollout: Rollout) -> float:
    """How far apart the perspectives are, as a share of their scales; 0 with fewer than two."""
    parts = rollout.reward.parts if rollout.reward is not None else {}
    heights = [value for name, value in parts.items() if name in rollout.judgments]
    return max(heights) - min(heights) if len(heights) > 1 else 0.0


def failures(rollout: Rollout) -> list[str]:
    """The kinds of failure in a rollout, such as `reception unparseable`."""
    kinds = [
        f"{name} {judgment.status}"
        for name, judgment in rollout.judgments.items()
        if judgment.status != Status.OK
    ]
    if not rollout.sections.valid:
        kinds.append("a section is missing")
    if rollout.completion.truncated:
        kinds.append("truncated")
    if rollout.masked and not kinds:
        kinds.append(f"masked: {rollout.masked_because}")
    return kinds


def _reasons(
    groups: Sequence[RolloutGroup], entries: Sequence[Chosen], earlier: Mapping[str, float]
) -> Iterator[tuple[Chosen, str]]:
    rewarded = _by_reward(entries)
    if rewarded:
        yield rewarded[-1], "the best reward"
        yield rewarded[0], "the worst reward"
        disputed = max(rewarded, key=lambda entry: disagreement(entry.rollout))
        if disagreement(disputed.rollout) > 0:
            yield disputed, "the most disagreement between perspectives"
    changes = {
        scenario: mean - earlier[scenario]
        for scenario, mean in mean_rewards(groups).items()
        if scenario in earlier and mean != earlier[scenario]
    }
    if changes:
        most = max(changes, key=lambda scenario: abs(changes[scenario]))
        of_it = [entry for entry in rewarded if entry.rollout.completion.scenario_id == most]
        # The one that shows the change: furthest on the side that the mean moved to.
        shown = of_it[-1] if changes[most] > 0 else of_it[0]
        yield shown, f"the most changed scenario: {changes[most]:+.3f} since the last time"
    told: set[str] = set()
    for entry in entries:
        for kind in failures(entry.rollout):
            if kind not in told:
                told.add(kind)
                yield entry, kind


def _spread(entries: Sequence[Chosen], count: int) -> Iterator[tuple[Chosen, str]]:
    """Rollouts at even distances in the order of rewards, then the others."""
    rewarded = _by_reward(entries)
    if rewarded:
        for place in range(count):
            yield rewarded[place * (len(rewarded) - 1) // max(1, count - 1)], "across the range of rewards"
    for entry in (*rewarded, *entries):
        yield entry, "to fill the number"


def _by_reward(entries: Sequence[Chosen]) -> list[Chosen]:
    rewarded = [(entry.rollout.reward.value, entry) for entry in entries if entry.rollout.reward is not None]
    return [entry for _, entry in sorted(rewarded, key=lambda pair: pair[0])]
