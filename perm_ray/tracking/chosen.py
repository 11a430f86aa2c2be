"""Choose which of a step's rollouts a person should read: extremes, disputed, changed and failed ones.

Everything is in `samples/` of the run directory; MLflow gets a dozen a step, and these are they. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from perm_ray.tracking.samples import RolloutRow
from perm_ray.types import FinishReason, Status

Chosen = tuple[RolloutRow, str]  # a rollout and why it was chosen


def choose(rows: Sequence[RolloutRow], earlier: Mapping[str, float], count: int) -> list[Chosen]:
    """Return at most `count` rollouts, each once, the most telling first.

    Args:
        rows: The rollouts of a step.
        earlier: The mean reward of each scenario when it was last looked at (`mean_rewards`).
        count: The most to choose. What is left after the reasons goes to rollouts spread over the range of
            rewards.
    """
    chosen: dict[int, Chosen] = {}
    for row, why in (*_reasons(rows, earlier), *_spread(rows, count)):
        if len(chosen) == count:
            break
        chosen.setdefault(id(row), (row, why))
    return list(chosen.values())


def mean_rewards(rows: Sequence[RolloutRow]) -> dict[str, float]:
    """Return each scenario's mean reward; one whose rollouts are all masked has none."""
    rewards: dict[str, list[float]] = {}
    for row in rows:
        if row.reward is not None:
            rewards.setdefault(row.scenario_id, []).append(row.reward.value)
    return {scenario: fmean(values) for scenario, values in rewards.items()}


def disagreement(row: RolloutRow) -> float:
    """Return how far apart the perspectives are, as a share of their scales; 0 with fewer than two."""
    parts = row.reward.parts if row.reward is not None else {}
    heights = [value for name, value in parts.items() if name in row.judgments]
    return max(heights) - min(heights) if len(heights) > 1 else 0.0


def failures(row: RolloutRow) -> list[str]:
    """Return the kinds of failure in a rollout, such as `reception unparseable`."""
    kinds = [
        f"{name} {judgment.status}"
        for name, judgment in row.judgments.items()
        if judgment.status != Status.OK
    ]
    if row.analysis is None or row.response is None:
        kinds.append("a section is missing")
    if row.finish_reason == FinishReason.LENGTH:
        kinds.append("truncated")
    if row.masked and not kinds:
        kinds.append(f"masked: {row.masked_because}")
    return kinds


def _reasons(rows: Sequence[RolloutRow], earlier: Mapping[str, float]) -> Iterator[Chosen]:
    rewarded = _by_reward(rows)
    if rewarded:
        yield rewarded[-1], "the best reward"
        yield rewarded[0], "the worst reward"
        disputed = max(rewarded, key=disagreement)
        if disagreement(disputed) > 0:
            yield disputed, "the most disagreement between perspectives"
    changes = {
        scenario: mean - earlier[scenario]
        for scenario, mean in mean_rewards(rows).items()
        if scenario in earlier and mean != earlier[scenario]
    }
    if changes:
        most = max(changes, key=lambda scenario: abs(changes[scenario]))
        same = [row for row in rewarded if row.scenario_id == most]
        # The one that shows the change: furthest on the side that the mean moved to.
        shown = same[-1] if changes[most] > 0 else same[0]
        yield shown, f"the most changed scenario: {changes[most]:+.3f} since the last time"
    seen: set[str] = set()
    for row in rows:
        for kind in failures(row):
            if kind not in seen:
                seen.add(kind)
                yield row, kind


def _spread(rows: Sequence[RolloutRow], count: int) -> Iterator[Chosen]:
    """Yield rollouts at even distances in the order of rewards, then the others."""
    rewarded = _by_reward(rows)
    if rewarded:
        for place in range(count):
            yield rewarded[place * (len(rewarded) - 1) // max(1, count - 1)], "across the range of rewards"
    for row in (*rewarded, *rows):
        yield row, "to fill the number"


def _by_reward(rows: Sequence[RolloutRow]) -> list[RolloutRow]:
    rewarded = [(row.reward.value, row) for row in rows if row.reward is not None]
    return [row for _, row in sorted(rewarded, key=lambda pair: pair[0])]
