"""A judge's answer becomes a reading, or says why it is none."""

import math
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perm_ray.judges.perspective import load_perspective
from perm_ray.judges.scoring import (
    ScoreError,
    criteria_lines,
    criteria_regex,
    expected_score,
    sum_of_criteria,
)
from perm_ray.types import Judgment, Scale

CRITERIA = load_perspective("bystander").criteria
CRITERION_SCALE = load_perspective("bystander").number_scale

FIVE = Scale(1, 5)
REGEX = criteria_regex(CRITERIA, CRITERION_SCALE)


def logs(*probabilities: float) -> dict[int, float]:
    return {i + 1: math.log(p) if p else -math.inf for i, p in enumerate(probabilities)}


def test_a_hand_worked_expected_score():
    # (1*0.1 + 2*0 + 3*0.2 + 4*0.4 + 5*0.1) / 0.8 = 2.8 / 0.8
    reading = expected_score(logs(0.1, 0.0, 0.2, 0.4, 0.1), FIVE, 0.2)
    assert reading.score == pytest.approx(3.5)
    assert reading.mass == pytest.approx(0.8)
    assert reading.distribution == pytest.approx((0.125, 0.0, 0.25, 0.5, 0.125))
    assert reading.entropy == pytest.approx(0.25 * math.log(8) + 0.25 * math.log(4) + 0.5 * math.log(2))


def test_little_mass_on_the_digits_is_no_opinion():
    with pytest.raises(ScoreError, match=r"less than 0.2 .* on 1 to 5") as caught:
        expected_score(logs(0.02, 0.02, 0.02, 0.02, 0.02), FIVE, 0.2)
    assert caught.value.mass == pytest.approx(0.1)


def test_no_mass_at_all_is_never_a_score():
    with pytest.raises(ScoreError):
        expected_score(logs(0, 0, 0, 0, 0), FIVE, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.5])
def test_what_is_no_log_probability_is_refused(bad):
    with pytest.raises(ScoreError, match="at most 0"):
        expected_score(logs(0.2, 0.2, 0.2, 0.2, 0.1) | {3: bad}, FIVE, 0.2)


def test_a_missing_value_is_refused():
    with pytest.raises(ScoreError, match=r"no log-probability for \[5\]"):
        expected_score(logs(0.2, 0.2, 0.2, 0.2), FIVE, 0.2)


def test_a_score_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ScoreError("no digit", 0.03)))
    assert (str(error), error.reason, error.mass) == ("no digit", "no digit", 0.03)


def point(value: int) -> Judgment:
    """A judge who is sure of a criterion's points."""
    return expected_score({v: 0.0 if v == value else -math.inf for v in range(21)}, CRITERION_SCALE, 0.2)


def test_criteria_are_added_up_by_us():
    points = dict(zip(CRITERIA, (12, 8, 0, 20, 15), strict=True))
    reading = sum_of_criteria({name: point(value) for name, value in points.items()})
    assert reading.criteria == points
    assert (reading.score, reading.sampled, reading.mass) == (55.0, 55.0, 1.0)
    assert reading.distribution[55] == 1.0
    assert len(reading.distribution) == 101
    assert reading.entropy == 0.0


def test_the_sum_of_unsure_criteria_is_spread_by_hand():
    # 0 or 20 with a half each, twice: 0 with 1/4, 20 with 1/2, 40 with 1/4
    half = expected_score(
        {v: math.log(0.4) if v in (0, 20) else -math.inf for v in range(21)}, Scale(0, 20), 0.2
    )
    reading = sum_of_criteria({"content": half, "accuracy": half})
    assert reading.score == pytest.approx(20.0)
    assert reading.mass == pytest.approx(0.8)
    assert {i: p for i, p in enumerate(reading.distribution) if p} == pytest.approx(
        {0: 0.25, 20: 0.5, 40: 0.25}
    )
    assert reading.entropy == pytest.approx(1.5 * math.log(2))


def test_the_regex_is_plain_enough_for_every_grammar_backend():
    assert not re.search(r"\(\?|[\^$*+{}]|\\[^n]", REGEX)
    assert criteria_lines(CRITERIA)[0] == "Content: "


def test_a_criterion_that_would_need_escaping_is_refused():
    with pytest.raises(ValueError, match="plain letters"):
        criteria_regex(["content (total)"], CRITERION_SCALE)


@given(st.lists(st.floats(0.001, 0.2), min_size=5, max_size=5))
def test_an_expected_score_stays_on_the_scale(probabilities):
    reading = expected_score(logs(*probabilities), FIVE, 0.0)
    assert reading.score is not None
    assert 1 <= reading.score <= 5
    assert math.fsum(reading.distribution) == pytest.approx(1.0)
    assert reading.entropy is not None
    assert -1e-12 <= reading.entropy <= math.log(5) + 1e-12


@given(st.lists(st.floats(0.01, 0.2), min_size=5, max_size=5), st.floats(0.1, 1.0))
def test_an_expected_score_does_not_depend_on_the_mass(probabilities, share):
    whole = expected_score(logs(*probabilities), FIVE, 0.0)
    part = expected_score(logs(*(p * share for p in probabilities)), FIVE, 0.0)
    assert part.score == pytest.approx(whole.score)
