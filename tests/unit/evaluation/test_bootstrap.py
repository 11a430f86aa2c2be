"""The paired bootstrap, against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from perm_ray.errors import DataError
from perm_ray.evaluation.bootstrap import Difference, paired_difference


def test_agrees_with_scipy() -> None:
    generator = np.random.default_rng(1)
    before = generator.normal(3.0, 1.0, 40)
    after = before + generator.normal(0.3, 0.5, 40)
    ours = paired_difference(list(before), list(after), seed=42, num_resamples=20_000)
    theirs = stats.bootstrap(
        (after - before,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(7)
    ).confidence_interval
    assert ours.mean == pytest.approx(float(np.mean(after - before)))
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)
    assert ours.low < ours.mean < ours.high


def test_pairing_narrows_the_interval() -> None:
    generator = np.random.default_rng(2)
    before = list(generator.normal(0.0, 5.0, 60))
    after = [value + 0.1 for value in before]
    assert paired_difference(before, after, seed=0).low == pytest.approx(0.1)
    shuffled = [after[index] for index in generator.permutation(60)]
    assert paired_difference(before, shuffled, seed=0).low < 0


def test_same_seed_same_interval() -> None:
    before, after = [0.0] * 12, [float(value) for value in np.random.default_rng(0).normal(size=12)]
    assert paired_difference(before, after, seed=3) == paired_difference(before, after, seed=3)
    assert paired_difference(before, after, seed=3) != paired_difference(before, after, seed=4)


def test_a_higher_confidence_is_wider() -> None:
    before, after = [0.0] * 8, [0.1, 0.5, -0.2, 0.3, 0.9, -0.4, 0.2, 0.0]
    narrow = paired_difference(before, after, seed=0, confidence=0.5)
    wide = paired_difference(before, after, seed=0, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_many_pairs_are_drawn_in_pieces() -> None:
    size = 3000  # more indices than are drawn at once
    found = paired_difference([0.0] * size, [0.0, 1.0] * (size // 2), seed=0, num_resamples=2000)
    error = 1.96 * 0.5 / size**0.5
    assert (found.low, found.high) == (
        pytest.approx(0.5 - error, abs=2e-3),
        pytest.approx(0.5 + error, abs=2e-3),
    )


def test_one_pair_has_no_width() -> None:
    assert paired_difference([1.0], [1.5], seed=0) == Difference(0.5, 0.5, 0.5, 1)


@pytest.mark.parametrize(("before", "after"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [float("nan")])])
def test_what_cannot_be_compared_is_refused(before: list[float], after: list[float]) -> None:
    with pytest.raises(DataError, match="A paired difference needs"):
        paired_difference(before, after, seed=0)
