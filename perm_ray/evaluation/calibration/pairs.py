"""Measure how often judges prefer the reply that a person prefers, of two to the same scenario. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from perm_ray.config.training import RewardConfig
from perm_ray.data.items import Preference
from perm_ray.evaluation.bootstrap import Difference, paired_difference
from perm_ray.evaluation.calibration.figures import Judgments
from perm_ray.judges.perspective import Perspective
from perm_ray.rewards.reward import reward_of_asked

Scores = Mapping[str, Mapping[str, float | None]]  # by perspective (and `reward`), then by item
CHANCE = 0.5


def scores_of(judgments: Judgments, perspectives: Mapping[str, Perspective], rewards: RewardConfig) -> Scores:
    """Return each item's scores by perspective, and its reward; None where there is none."""
    scores: dict[str, dict[str, float | None]] = {
        name: {item: found[name].score for item, found in judgments.items()} for name in perspectives
    }
    scores["reward"] = {}
    for item, found in judgments.items():
        reward, _, _ = reward_of_asked(found, perspectives, rewards)
        scores["reward"][item] = reward.value if reward is not None else None
    return scores


def preferred_shares(pairs: Sequence[Preference], scores: Mapping[str, float | None]) -> dict[str, float]:
    """Return the share of pairs in which the preferred reply has the higher score, by scenario.

    Equal scores count one half. Pairs in which a reply has no score are left out.
    """
    found: dict[str, list[float]] = {}
    for pair in pairs:
        better, worse = scores[pair.better.item_id], scores[pair.worse.item_id]
        if better is not None and worse is not None:
            value = CHANCE if better == worse else float(better > worse)
            found.setdefault(pair.better.scenario.scenario_id, []).append(value)
    return {scenario: float(np.mean(values)) for scenario, values in found.items()}


def pair_figures(
    pairs: Sequence[Preference], setups: Sequence[Scores], seed: int
) -> dict[str, list[Difference]]:
    """Return, by perspective, each setup's share of pairs, and the change from one setup to the other.

    Args:
        pairs: Replies that people prefer one of.
        setups: The scores of one judge, or of two: before and after.
        seed: Of the bootstrap, which draws scenarios: pairs of one are no independent witnesses.

    Returns:
        For each perspective the share of each setup with its interval (0.5 is chance); then, for two, the
        second minus the first. A perspective without a pair that has scores is left out.
    """
    figures = {}
    for name in setups[0]:
        shares = [preferred_shares(pairs, scores[name]) for scores in setups]
        common = sorted(set(shares[0]).intersection(*shares[1:]))
        if common:
            columns = [[each[scenario] for scenario in common] for each in shares]
            figures[name] = [paired_difference([0.0] * len(common), column, seed) for column in columns]
            if len(columns) == 2:
                figures[name].append(paired_difference(columns[0], columns[1], seed))
    return figures


def figure_rows(figures: Mapping[str, Sequence[Difference]]) -> list[tuple[str, ...]]:
    """Return a row of texts for each perspective: its figures with intervals, and how many scenarios."""
    return [
        (name, *(f"{f.mean:.2f} ({f.low:.2f} to {f.high:.2f})" for f in each), str(each[0].pairs))
        for name, each in figures.items()
    ]
