"""Compare two judges, or two rubrics: with each other, or both with people. Pure.

`compare_scored` takes two files of `perm-ray judge score`, `improvements` a judge before and after training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perm_ray.errors import DataError
from perm_ray.evaluation.calibration.agreement import (
    Bootstrap,
    Confusion,
    Figure,
    agreement,
    confusion,
    improvement,
    mean_of_raters,
)
from perm_ray.evaluation.calibration.figures import Judgments, judged_on
from perm_ray.evaluation.calibration.labelled import LabelledSet
from perm_ray.evaluation.calibration.resampling import Array
from perm_ray.evaluation.scored import ScoredItem, Setup
from perm_ray.types import JudgeItem, Scale

_REWARD_SCALE = Scale(-1, 1)  # a reward has no levels: its figures of levels are left out


@dataclass(frozen=True, slots=True)
class Contrast:
    """An item that the two judges score differently, and what each says of it."""

    perspective: str
    item: JudgeItem
    scores: tuple[float, float]
    reasons: tuple[str, str]
    share: float  # of the scale that lies between the two


@dataclass(frozen=True, slots=True)
class PairReport:
    """One perspective: `n` items have a score in both; `mean_difference` is the second minus the first."""

    n: int
    scale: Scale
    figures: Mapping[str, Figure]
    mean_difference: float | None
    confusion: Confusion


@dataclass(frozen=True, slots=True)
class ComparisonReport:
    """The result of `perm-ray judge compare`; `rewards` are the two rank correlations of the rewards."""

    setups: tuple[Setup, Setup]
    num_items: int
    only_in: tuple[int, int]
    perspectives: Mapping[str, PairReport]
    rewards: Mapping[str, Figure]
    contrasts: tuple[Contrast, ...]


def improvements(
    labelled: LabelledSet,
    before: Judgments,
    after: Judgments,
    scales: Mapping[str, Scale],
    bootstrap: Bootstrap,
) -> dict[str, dict[str, tuple[Figure, Figure, Figure]]]:
    """Return two judges' agreement with people, and the change, by dimension and figure (kappa, spearman).

    Args:
        labelled: Replies that neither judge learned from.
        before: The first judge's judgments of them.
        after: The second's.
        scales: Of the perspectives.
        bootstrap: How intervals are made; the change's is drawn over scenarios.
    """
    clusters = [row.item.scenario.scenario_id for row in labelled.items]
    found = {}
    for dimension in labelled.dimensions:
        name, scale = dimension.perspective, dimension.scale
        if name is None or name not in scales:
            continue
        people = mean_of_raters(labelled.ratings(dimension.name, labelled.raters(dimension.name)))
        first, second = (judged_on(labelled, each, name, scales[name], scale) for each in (before, after))
        change = improvement(first, second, people, scale, clusters, bootstrap)
        own = [agreement(each, people, scale, bootstrap) for each in (first, second)]
        shown = ("kappa", "spearman")
        found[dimension.name] = {key: (own[0][key], own[1][key], change[key]) for key in shown}
    return found


def compare_scored(
    first: Sequence[ScoredItem], second: Sequence[ScoredItem], bootstrap: Bootstrap, num_contrasts: int = 10
) -> ComparisonReport:
    """Compare two files on the items that both have.

    Raises `DataError` when they share no item, or when an item has another text in one than in the other.
    """
    others = {row.item.item_id: row for row in second}
    pairs = [(row, others[row.item.item_id]) for row in first if row.item.item_id in others]
    if not pairs:
        raise DataError("The two files have no item in common (by id): score the same file twice.")
    for a, b in pairs:
        if a.item != b.item:
            raise DataError(
                f"The item {a.item.item_id} has another text in the second file: score the same file twice."
            )
    names = [name for name in pairs[0][0].scales if name in pairs[0][1].scales]
    rewards = agreement(
        _column([a.reward for a, _ in pairs]), _column([b.reward for _, b in pairs]), _REWARD_SCALE, bootstrap
    )
    contrasts = sorted(_contrasts(pairs, names), key=lambda contrast: -contrast.share)
    return ComparisonReport(
        setups=(pairs[0][0].setup, pairs[0][1].setup),
        num_items=len(pairs),
        only_in=(len(first) - len(pairs), len(second) - len(pairs)),
        perspectives={name: _pair_report(pairs, name, bootstrap) for name in names},
        rewards={name: rewards[name] for name in ("spearman", "kendall")},
        contrasts=tuple(contrasts[:num_contrasts]),
    )


def _pair_report(
    pairs: Sequence[tuple[ScoredItem, ScoredItem]], name: str, bootstrap: Bootstrap
) -> PairReport:
    scale = pairs[0][0].scales[name]
    if any(row.scales.get(name) != scale for pair in pairs for row in pair):
        raise DataError(f"The two files have {name} on different scales: they cannot be compared.")
    x, y = _column([a.scores[name] for a, _ in pairs]), _column([b.scores[name] for _, b in pairs])
    both = ~(np.isnan(x) | np.isnan(y))
    return PairReport(
        n=int(both.sum()),
        scale=scale,
        figures=agreement(x, y, scale, bootstrap),
        mean_difference=float((y - x)[both].mean()) if both.any() else None,
        confusion=confusion(x, y, scale),
    )


def _contrasts(pairs: Sequence[tuple[ScoredItem, ScoredItem]], names: Sequence[str]) -> Iterator[Contrast]:
    for a, b in pairs:
        for name in names:
            x, y = a.scores[name], b.scores[name]
            if x is not None and y is not None and x != y:
                share = abs(x - y) / (a.scales[name].high - a.scales[name].low)
                yield Contrast(name, a.item, (x, y), (a.reasons[name], b.reasons[name]), share)


def _column(values: Sequence[float | None]) -> Array:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
