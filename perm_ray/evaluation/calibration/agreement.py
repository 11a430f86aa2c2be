"""Measure how well two raters agree, and people with each other: figures with intervals.

    kappa      Cohen's kappa with quadratic weights (scikit-learn), on whole levels of the scale
    spearman   Spearman's rank correlation (scipy), on the values as they are
    kendall    Kendall's tau-b (scipy), on the values as they are
    alpha      Krippendorff's alpha with the ordinal metric, on whole levels

Values that are no whole levels (a judge's expectation, the mean of several people) are rounded, halves
up, for kappa and alpha. All values of one call are on one scale: `on_scale` puts them there. Missing
ratings are nan and are left out in pairs. A figure that is not defined is None and says why.

Intervals are percentile bootstrap intervals over items (B. Efron and R. Tibshirani, An Introduction to
the Bootstrap, 1993, section 13.3), the same resamples for every figure of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from perm_ray.evaluation.calibration import resampling
from perm_ray.evaluation.calibration.resampling import Array
from perm_ray.types import Scale

FIGURES = ("kappa", "spearman", "kendall", "alpha")
MIN_ITEMS = 3  # of fewer, no figure says anything
MAX_SHOWN_LEVELS = 11  # a confusion matrix of more (0 to 100) is shown in ten bins

_MIN_DEFINED = 0.95  # of the resamples, for an interval
_LEVELS_ONLY = ("kappa", "alpha")


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Settings of the bootstrap intervals."""

    seed: int = 0
    num_resamples: int = 1000
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure over `n` items with its interval [low, high].

    `value` is None where the figure is not defined, `low` and `high` where the interval is not;
    `reason` then says why.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str = ""

    def __str__(self) -> str:
        """Return the figure as people read it: the value with its interval, or why there is none."""
        if self.value is None:
            return f"none: {self.reason}"
        if self.low is None or self.high is None:
            return f"{self.value:.2f} ({self.reason})"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, slots=True)
class Confusion:
    """`counts[i][j]` items are `labels[i]` to people and `labels[j]` to the judge."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class _Term:
    """A pair of raters whose agreement enters a figure with this weight."""

    weight: float
    first: Array
    second: Array


# ---- scales ---------------------------------------------------------------------------------------


def on_scale(values: Array, source: Scale, target: Scale) -> Array:
    """Return values of one scale at their place on another: linear, its ends on the other's ends."""
    share = (values - source.low) / (source.high - source.low)
    return target.low + share * (target.high - target.low)


def nearest_levels(values: Array, scale: Scale) -> Array:
    """Return the nearest whole levels, halves up (never to even: 2.5 and 3.5 are a level apart); nan
    stays."""
    return np.clip(np.floor(values + 0.5), scale.low, scale.high)


def mean_of_raters(ratings: Array) -> Array:
    """Return the mean of each item's ratings, shape (items,), of (items, raters); nan where there is none."""
    given = ~np.isnan(ratings)
    count = given.sum(axis=1)
    total = np.where(given, ratings, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


# ---- figures --------------------------------------------------------------------------------------


def agreement(first: Array, second: Array, scale: Scale, bootstrap: Bootstrap) -> dict[str, Figure]:
    """Return every figure of two raters; both of shape (items,), on `scale`."""
    return _figures([_Term(1.0, first, second)], scale, bootstrap)


def rater_alpha(ratings: Array, scale: Scale, bootstrap: Bootstrap) -> Figure:
    """Krippendorff's alpha of all raters together; `ratings` has shape (items, raters)."""
    levels = nearest_levels(ratings, scale)
    paired = (~np.isnan(levels)).sum(axis=1) >= 2
    n = int(paired.sum())
    if n < MIN_ITEMS:
        return Figure(None, None, None, n, _too_few(n))
    if len(np.unique(levels[paired][~np.isnan(levels[paired])])) < 2:
        return Figure(None, None, None, n, "every rating is the same")
    counts = resampling.draw_counts(len(levels), bootstrap.num_resamples, bootstrap.seed)
    replicates = resampling.ordinal_alpha(counts, levels)
    return _with_interval(_alpha(levels), replicates, n, bootstrap)


def human_line(ratings: Array, scale: Scale, bootstrap: Bootstrap) -> dict[str, Figure]:
    """Return the line to beat: each rater against the mean of the others, on average over raters."""
    return _figures(_one_against_others(ratings), scale, bootstrap)


def judge_margin(judged: Array, ratings: Array, scale: Scale, bootstrap: Bootstrap) -> dict[str, Figure]:
    """Return the judge in each rater's place, minus that rater: above 0, the judge agrees with the others
    better than people do. Paired: the same items, the same others, the same resamples."""
    terms = []
    for term in _one_against_others(ratings):
        both = np.where(np.isnan(judged), np.nan, term.first)
        place = np.where(np.isnan(term.first), np.nan, judged)
        terms += [_Term(term.weight, place, term.second), _Term(-term.weight, both, term.second)]
    return _figures(terms, scale, bootstrap)


def improvement(
    before: Array, after: Array, consensus: Array, scale: Scale, clusters: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Figure]:
    """Return how much more the second judge agrees with people than the first: above 0, it does.

    Paired: the same items and the same resamples, which are drawn over `clusters` (the items' scenarios),
    since the replies to one scenario are no independent witnesses. All of shape (items,), on `scale`.
    """
    missing = np.isnan(before) | np.isnan(after)
    people = np.where(missing, np.nan, consensus)
    return _figures([_Term(1.0, after, people), _Term(-1.0, before, people)], scale, bootstrap, clusters)


def confusion(human: Array, judged: Array, scale: Scale) -> Confusion:
    """Return how often each human level meets each level of the judge; both of shape (items,), on `scale`."""
    from sklearn.metrics import confusion_matrix

    present = ~(np.isnan(human) | np.isnan(judged))
    lows = list(range(scale.low, scale.high + 1))
    labels = [str(low) for low in lows]
    if len(lows) > MAX_SHOWN_LEVELS:
        edges = np.linspace(scale.low, scale.high, 11).round().astype(int)
        lows = edges[:-1].tolist()
        last = [*(edge - 1 for edge in edges[1:-1]), edges[-1]]
        labels = [f"{low}-{high}" for low, high in zip(lows, last, strict=True)]
    rows, columns = (
        np.searchsorted(lows, nearest_levels(values[present], scale), side="right") - 1
        for values in (human, judged)
    )
    if not present.any():
        return Confusion(tuple(labels), tuple((0,) * len(lows) for _ in lows))
    table = confusion_matrix(rows, columns, labels=np.arange(len(lows)))
    return Confusion(tuple(labels), tuple(tuple(map(int, row)) for row in table))


# ---- how --------------------------------------------------------------------------------------------


def _one_against_others(ratings: Array) -> list[_Term]:
    num_raters = ratings.shape[1]
    if num_raters < 2:
        return []
    return [
        _Term(1 / num_raters, ratings[:, i], mean_of_raters(np.delete(ratings, i, axis=1)))
        for i in range(num_raters)
    ]


def _figures(
    terms: Sequence[_Term], scale: Scale, bootstrap: Bootstrap, clusters: Sequence[str] = ()
) -> dict[str, Figure]:
    if not terms:
        return dict.fromkeys(FIGURES, Figure(None, None, None, 0, "there are not two human raters"))
    names, cluster_of = np.unique(clusters or range(len(terms[0].first)), return_inverse=True)
    counts = resampling.draw_counts(len(names), bootstrap.num_resamples, bootstrap.seed)[:, cluster_of]
    return {name: _figure(name, terms, scale, counts, bootstrap) for name in FIGURES}


def _figure(name: str, terms: Sequence[_Term], scale: Scale, counts: Array, bootstrap: Bootstrap) -> Figure:
    """Return the weighted sum of the terms' figures; not defined unless every term's is."""
    present = [~(np.isnan(term.first) | np.isnan(term.second)) for term in terms]
    n = int(np.logical_or.reduce(present).sum())
    total, replicates = 0.0, np.zeros(len(counts))
    for term, mask in zip(terms, present, strict=True):
        x, y = term.first[mask], term.second[mask]
        if name in _LEVELS_ONLY:
            x, y = nearest_levels(x, scale), nearest_levels(y, scale)
        if reason := _undefined(name, x, y):
            return Figure(None, None, None, n, reason)
        total += term.weight * _VALUE[name](x, y)
        replicates += term.weight * _REPLICATES[name](counts[:, mask], x, y)
    return _with_interval(total, replicates, n, bootstrap)


def _with_interval(value: float, replicates: Array, n: int, bootstrap: Bootstrap) -> Figure:
    defined = replicates[np.isfinite(replicates)]
    if len(defined) < _MIN_DEFINED * len(replicates):
        return Figure(value, None, None, n, "no interval: in too many resamples every rating is the same")
    tail = (1 - bootstrap.confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Figure(value, float(low), float(high), n)


def _undefined(name: str, x: Array, y: Array) -> str:
    """Return why a figure is not defined on these ratings, or ""."""
    if len(x) < MIN_ITEMS:
        return _too_few(len(x))
    constant_x, constant_y = np.ptp(x) == 0, np.ptp(y) == 0
    if constant_x and constant_y and x[0] == y[0]:
        return "every rating is the same"
    if name not in _LEVELS_ONLY and (constant_x or constant_y):
        return "one side gives every item the same rating"
    return ""


def _too_few(n: int) -> str:
    return f"only {n} items have both ratings, and it takes {MIN_ITEMS}"


def _kappa(x: Array, y: Array) -> float:
    from sklearn.metrics import cohen_kappa_score

    levels = np.arange(min(x.min(), y.min()), max(x.max(), y.max()) + 1)  # those between count, too
    return float(
        cohen_kappa_score(x.astype(int), y.astype(int), weights="quadratic", labels=levels.astype(int))
    )


def _spearman(x: Array, y: Array) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def _kendall(x: Array, y: Array) -> float:
    from scipy.stats import kendalltau

    return float(kendalltau(x, y, variant="b").statistic)  # pyright: ignore[reportAttributeAccessIssue]


def _alpha(ratings: Array) -> float:
    """Return alpha of ratings in whole levels, shape (items, raters): every item counted once."""
    return float(resampling.ordinal_alpha(np.ones((1, len(ratings))), ratings)[0])


_VALUE: Mapping[str, Callable[[Array, Array], float]] = {
    "kappa": _kappa,
    "spearman": _spearman,
    "kendall": _kendall,
    "alpha": lambda x, y: _alpha(np.column_stack([x, y])),
}
_REPLICATES: Mapping[str, Callable[[Array, Array, Array], Array]] = {
    "kappa": resampling.quadratic_kappa,
    "spearman": resampling.spearman,
    "kendall": resampling.kendall,
    "alpha": lambda counts, x, y: resampling.ordinal_alpha(counts, np.column_stack([x, y])),
}
