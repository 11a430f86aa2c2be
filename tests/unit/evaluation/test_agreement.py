"""Agreement figures against scikit-learn, scipy and krippendorff, by hand, and where they are not defined."""

from __future__ import annotations

import math
import time
import warnings

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from perm_ray.evaluation.calibration import resampling
from perm_ray.evaluation.calibration.agreement import (
    FIGURES,
    Bootstrap,
    agreement,
    confusion,
    human_line,
    judge_margin,
    mean_of_raters,
    nearest_levels,
    on_scale,
    rater_alpha,
)
from perm_ray.types import Scale

FIVE = Scale(1, 5)
QUICK = Bootstrap(seed=0, num_resamples=200)


def synthetic(n: int = 200, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """People's levels, and a judge who is often right, sometimes a level off, and never whole."""
    generator = np.random.default_rng(seed)
    human = generator.integers(1, 6, n).astype(float)
    judged = np.clip(human + generator.normal(0, 1.0, n), 1, 5)
    return human, judged


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    return float(stats.spearmanr(x, y).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    return float(stats.kendalltau(x, y).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def library_figures(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    rounded = [np.floor(values + 0.5) for values in (x, y)]
    return {
        "kappa": cohen_kappa_score(
            *(r.astype(int) for r in rounded), weights="quadratic", labels=range(1, 6)
        ),
        "spearman": spearman(x, y),
        "kendall": kendall(x, y),
        "alpha": krippendorff.alpha(np.array(rounded), level_of_measurement="ordinal"),
    }


def test_a_known_kappa_is_found_as_the_libraries_find_it() -> None:
    # Two raters who agree with probability q and else rate at random: kappa is q for every weighting.
    generator = np.random.default_rng(5)
    first = generator.integers(1, 6, 20_000).astype(float)
    second = np.where(generator.random(20_000) < 0.6, first, generator.integers(1, 6, 20_000))
    kappa = cohen_kappa_score(first.astype(int), second.astype(int), weights="quadratic")
    assert kappa == pytest.approx(0.6, abs=0.02)
    found = agreement(first[:500], second[:500], FIVE, QUICK)
    for name, value in library_figures(first[:500], second[:500]).items():
        assert found[name].value == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("seed", range(5))
def test_every_figure_is_the_libraries(seed: int) -> None:
    human, judged = synthetic(seed=seed)
    found = agreement(judged, human, FIVE, QUICK)
    for name, value in library_figures(judged, human).items():
        assert found[name].value == pytest.approx(value, abs=1e-6), name
        low, high = found[name].low, found[name].high
        assert low is not None
        assert high is not None
        assert low < value < high
        assert found[name].n == 200


def test_each_resample_has_the_libraries_figures() -> None:
    human, judged = synthetic(40)
    counts = resampling.draw_counts(40, 25, seed=1)
    x, y = nearest_levels(judged, FIVE), human
    fast = {
        "kappa": resampling.quadratic_kappa(counts, x, y),
        "spearman": resampling.spearman(counts, judged, y),
        "kendall": resampling.kendall(counts, judged, y),
        "alpha": resampling.ordinal_alpha(counts, np.column_stack([x, y])),
    }
    for i, row in enumerate(counts.astype(int)):
        drawn = np.repeat(np.arange(40), row)
        for name, value in library_figures(judged[drawn], y[drawn]).items():
            assert fast[name][i] == pytest.approx(value, abs=1e-9), name


def test_alpha_of_many_raters_with_gaps_is_the_packages_in_each_resample() -> None:
    generator = np.random.default_rng(2)
    ratings = np.clip(generator.integers(1, 6, (30, 1)) + generator.integers(-1, 2, (30, 4)), 1, 5).astype(
        float
    )
    ratings[generator.random(ratings.shape) < 0.3] = np.nan
    value = krippendorff.alpha(ratings.T, level_of_measurement="ordinal")
    assert rater_alpha(ratings, FIVE, QUICK).value == pytest.approx(value, abs=1e-6)
    counts = resampling.draw_counts(30, 20, seed=4)
    fast = resampling.ordinal_alpha(counts, ratings)
    for i, row in enumerate(counts.astype(int)):
        drawn = ratings[np.repeat(np.arange(30), row)]
        assert fast[i] == pytest.approx(krippendorff.alpha(drawn.T, level_of_measurement="ordinal"), abs=1e-9)


def test_kappa_by_hand() -> None:
    # x = 1 1 2 3, y = 1 2 2 3: observed 1/4; E x^2 = 15/4, E y^2 = 18/4, Ex Ey = 7/4 * 2: expected 5/4.
    found = agreement(np.array([1.0, 1, 2, 3]), np.array([1.0, 2, 2, 3]), Scale(1, 3), QUICK)["kappa"]
    assert found.value == pytest.approx(1 - (1 / 4) / (5 / 4))


def test_kendall_by_hand() -> None:
    # Of 6 pairs: 4 concordant, none discordant, one tied in x, one tied in y: 4 / sqrt(5 * 5).
    found = agreement(np.array([1.0, 1, 2, 3]), np.array([1.0, 2, 2, 3]), Scale(1, 3), QUICK)["kendall"]
    assert found.value == pytest.approx(4 / 5)


def test_the_interval_is_scipys_bootstrap() -> None:
    human, judged = synthetic(120)
    ours = agreement(judged, human, FIVE, Bootstrap(seed=1, num_resamples=4000))["spearman"]
    theirs = stats.bootstrap(
        (judged, human),
        spearman,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=1000,
        rng=np.random.default_rng(7),
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.015)
    assert ours.high == pytest.approx(theirs.high, abs=0.015)


def test_a_thousand_resamples_of_200_items_take_seconds() -> None:
    human, judged = synthetic(200)
    agreement(judged, human, FIVE, QUICK)  # imports
    start = time.monotonic()
    agreement(judged, human, FIVE, Bootstrap(num_resamples=1000))
    assert time.monotonic() - start < 5


def test_the_same_seed_gives_the_same_intervals() -> None:
    human, judged = synthetic(60)
    assert agreement(judged, human, FIVE, QUICK) == agreement(judged, human, FIVE, QUICK)
    other = agreement(judged, human, FIVE, Bootstrap(seed=9, num_resamples=200))
    assert other != agreement(judged, human, FIVE, QUICK)


@pytest.mark.parametrize(
    ("x", "y", "undefined"),
    [
        ([], [], FIGURES),
        ([1, 2], [1, 2], FIGURES),
        ([3, 3, 3, 3], [3, 3, 3, 3], FIGURES),
        ([3, 3, 3, 3], [1, 2, 3, 4], ("spearman", "kendall")),
        ([3, 3, 3, 3], [4, 4, 4, 4], ("spearman", "kendall")),
        ([1, 2, math.nan, 4], [1, math.nan, 3, 4], FIGURES),
    ],
)
def test_what_is_not_defined_is_none_with_a_reason(x, y, undefined) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement(np.array(x, dtype=float), np.array(y, dtype=float), FIVE, QUICK)
    for name, figure in found.items():
        if name in undefined:
            assert (figure.value, figure.low, figure.high) == (None, None, None), name
            assert figure.reason
        else:
            assert figure.value is not None
            assert math.isfinite(figure.value)


ratings = st.one_of(st.just(math.nan), st.floats(1, 5))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(ratings, ratings, ratings), max_size=12))
def test_never_nan_and_never_an_exception(rows) -> None:
    table = np.array(rows, dtype=float).reshape(-1, 3)
    judged, people = table[:, 0], table[:, 1:]
    quick = Bootstrap(num_resamples=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = [
            *agreement(judged, mean_of_raters(people), FIVE, quick).values(),
            *human_line(people, FIVE, quick).values(),
            *judge_margin(judged, people, FIVE, quick).values(),
            rater_alpha(people, FIVE, quick),
        ]
    for figure in figures:
        assert (figure.value is None) <= bool(figure.reason)
        assert all(v is None or math.isfinite(v) for v in (figure.value, figure.low, figure.high))


def test_the_human_line_is_each_rater_against_the_others() -> None:
    generator = np.random.default_rng(8)
    truth = generator.integers(1, 6, (80, 1))
    people = np.clip(truth + generator.integers(-1, 2, (80, 3)), 1, 5).astype(float)
    expected = np.mean([spearman(people[:, i], np.delete(people, i, 1).mean(axis=1)) for i in range(3)])
    assert human_line(people, FIVE, QUICK)["spearman"].value == pytest.approx(expected)
    alone = human_line(people[:, :1], FIVE, QUICK)["kappa"]
    assert alone.value is None
    assert alone.reason == "there are not two human raters"


def test_the_margin_is_above_zero_for_a_judge_who_is_better_than_people() -> None:
    generator = np.random.default_rng(8)
    truth = generator.integers(1, 6, 120).astype(float)
    people = np.clip(truth[:, None] + generator.integers(-2, 3, (120, 3)), 1, 5).astype(float)
    better = judge_margin(truth, people, FIVE, QUICK)["kappa"]
    assert better.low is not None
    assert better.low > 0
    random = generator.integers(1, 6, 120).astype(float)
    worse = judge_margin(random, people, FIVE, QUICK)["kappa"]
    assert worse.high is not None
    assert worse.high < 0
    itself = judge_margin(people[:, 0], people[:, :1].repeat(2, axis=1), FIVE, QUICK)["spearman"]
    assert itself.value == pytest.approx(0.0)


def test_levels_and_scales() -> None:
    assert nearest_levels(np.array([0.2, 1.5, 2.5, 3.49, 9.0]), FIVE).tolist() == [1, 2, 3, 3, 5]
    assert on_scale(np.array([1.0, 3.0, 5.0]), FIVE, Scale(0, 2)).tolist() == [0, 1, 2]
    assert on_scale(np.array([0.0, 50.0, 100.0]), Scale(0, 100), FIVE).tolist() == [1, 3, 5]


def test_confusion_counts_people_in_rows() -> None:
    table = confusion(np.array([1.0, 1, 2, math.nan]), np.array([1.0, 1.6, 2.4, 3]), Scale(1, 3))
    assert table.labels == ("1", "2", "3")
    assert table.counts == ((1, 1, 0), (0, 1, 0), (0, 0, 0))


def test_a_wide_scale_is_shown_in_bins() -> None:
    table = confusion(np.array([0.0, 99, 100]), np.array([9.4, 10, 100]), Scale(0, 100))
    assert table.labels[:2] == ("0-9", "10-19")
    assert table.labels[-1] == "90-100"
    assert table.counts[0][0] == 1
    assert (table.counts[-1][1], table.counts[-1][-1]) == (1, 1)
    assert sum(map(sum, table.counts)) == 3
