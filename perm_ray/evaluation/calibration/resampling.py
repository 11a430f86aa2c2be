"""Agreement figures of many resamples at once, for bootstrap intervals. Pure NumPy.

`agreement.py` takes kappa and the correlations themselves from scikit-learn and scipy. A thousand resamples
through those would take minutes; a resample differs from the data only in how often each item counts,
so here every figure is a function of counts, for all resamples together. A test holds each resample's
figure equal to the libraries'.

Throughout, `counts` has shape (resamples, items): how often an item was drawn. `x` and `y` have shape
(items,). The result has shape (resamples,); it is nan where the figure is not defined, as when a
resample's ratings are all the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_BLOCK = 1024  # items a block of Kendall's signs: bounds its memory to 8 MB


def draw_counts(num_items: int, num_resamples: int, seed: int) -> Array:
    """Return how often each item is in each resample: items are drawn with replacement, as many as there
    are."""
    generator = np.random.default_rng(seed)
    if not num_items:
        return np.zeros((num_resamples, 0))
    even = np.full(num_items, 1.0 / num_items)
    return generator.multinomial(num_items, even, size=num_resamples).astype(np.float64)


def quadratic_kappa(counts: Array, x: Array, y: Array) -> Array:
    """Cohen's kappa with quadratic weights: 1 - E(x-y)^2 / (E x^2 + E y^2 - 2 Ex Ey).

    The denominator is the expected squared difference of independent raters with the same margins.
    Source: J. Cohen, Weighted kappa (Psychological Bulletin 70, 1968).
    """
    n = np.maximum(counts.sum(axis=1), 1)
    observed = counts @ (x - y) ** 2 / n
    expected = (counts @ x**2 + counts @ y**2) / n - 2 * (counts @ x) * (counts @ y) / n**2
    return 1 - _ratio(observed, expected)


def spearman(counts: Array, x: Array, y: Array) -> Array:
    """Spearman's rho: Pearson's correlation of the ranks, where ties share their mean rank."""
    rank_x, rank_y = _ranks(counts, x), _ranks(counts, y)
    n = counts.sum(axis=1)
    centre = ((n + 1) / 2)[:, None]  # the mean rank, whatever the ties
    rank_x, rank_y = rank_x - centre, rank_y - centre
    both = (counts * rank_x * rank_y).sum(axis=1)
    spread = (counts * rank_x**2).sum(axis=1) * (counts * rank_y**2).sum(axis=1)
    return _ratio(both, np.sqrt(spread))


def kendall(counts: Array, x: Array, y: Array) -> Array:
    """Kendall's tau-b: (concordant - discordant) / sqrt((pairs - ties in x) (pairs - ties in y)).

    Source: M. Kendall, The treatment of ties in ranking problems (Biometrika 33, 1945).
    """
    balance = np.zeros(len(counts))
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        signs = np.sign(x[rows, None] - x[None, :]) * np.sign(y[rows, None] - y[None, :])
        balance += ((counts[:, rows] @ signs) * counts).sum(axis=1) / 2
    return _ratio(balance, np.sqrt(_untied_pairs(counts, x) * _untied_pairs(counts, y)))


def ordinal_alpha(counts: Array, ratings: Array) -> Array:
    """Krippendorff's alpha with the ordinal metric; `ratings` has shape (items, raters), nan where missing.

    The ordinal distance of two values is the difference of their mean ranks among all values that can
    be paired (those of items with two ratings or more). Source: K. Krippendorff, Computing
    Krippendorff's Alpha-Reliability (2011), for several raters, missing values and ordinal data.
    """
    given = ~np.isnan(ratings)
    per_item = given.sum(axis=1)
    paired = per_item >= 2
    if not paired.any():
        return np.full(len(counts), np.nan)
    counts, ratings, given, per_item = counts[:, paired], ratings[paired], given[paired], per_item[paired]
    levels, index = np.unique(ratings[given], return_inverse=True)
    holds = np.zeros((len(ratings), len(levels)))  # how many ratings of an item are at a level
    np.add.at(holds, (np.nonzero(given)[0], index), 1.0)
    at_level = counts @ holds
    rank = np.cumsum(at_level, axis=1) - at_level / 2
    total = np.maximum(at_level.sum(axis=1), 1)  # a resample may have drawn no such item
    # Sums of (rank - rank')^2 over pairs are 2 m sum(rank^2) - 2 sum(rank)^2.
    sums, squares = rank @ holds.T, rank**2 @ holds.T
    within = ((2 * per_item * squares - 2 * sums**2) / (per_item - 1) * counts).sum(axis=1) / total
    among = 2 * total * (at_level * rank**2).sum(axis=1) - 2 * (at_level * rank).sum(axis=1) ** 2
    return 1 - _ratio(within, among / (total * np.maximum(total - 1, 1)))


def _ranks(counts: Array, values: Array) -> Array:
    """Return each item's mean rank in each resample, shape (resamples, items)."""
    at_level, index = _counts_by_level(counts, values)
    return (np.cumsum(at_level, axis=1) - (at_level - 1) / 2)[:, index]


def _counts_by_level(counts: Array, values: Array) -> tuple[Array, NDArray[np.intp]]:
    """Return how many drawn items have each different value, shape (resamples, levels); each item's level."""
    _, index, sizes = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.add.reduceat(counts[:, np.argsort(index, kind="stable")], starts, axis=1), index


def _untied_pairs(counts: Array, values: Array) -> Array:
    at_level, _ = _counts_by_level(counts, values)
    n = counts.sum(axis=1)
    return (n * (n - 1) - (at_level * (at_level - 1)).sum(axis=1)) / 2


def _ratio(above: Array, below: Array) -> Array:
    """above / below, nan where there is nothing (or only rounding) to divide by."""
    defined = below > 1e-12
    return np.where(defined, above / np.where(defined, below, 1.0), np.nan)
