"""A judge's answer becomes a reading, or says why it is none."""

import math
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perm_ray.perspectives.bystander import CRITERIA, CRITERION_SCALE
from perm_ray.perspectives.perspective import Scale
from perm_ray.perspectives.scoring import (
    ScoreError,
    answer_opening,
    criteria_regex,
    criteria_score,
    expected_score,
    parse_criteria,
)

FIVE = Scale(1, 5)
ANSWER = "12\nStructure: 8\nEfficiency: 0\nObjectivity: 20\nAccuracy: 15"
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


def test_the_criteria_are_read_and_we_add_them_up():
    reading = criteria_score(ANSWER, CRITERIA, CRITERION_SCALE)
    assert reading.criteria == {
        "content": 12.0,
        "structure": 8.0,
        "efficiency": 0.0,
        "objectivity": 20.0,
        "accuracy": 15.0,
    }
    assert reading.score == 55.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12",
        ANSWER.replace("Accuracy: 15", "Accuracy: 1").removesuffix("1"),
        ANSWER.replace("20", "21"),
        ANSWER.replace("12", "012"),
        ANSWER.replace("12", "-1"),
        ANSWER.replace("12", "12.5"),
        ANSWER.replace("12", "12/20"),
        ANSWER.replace("12", "**12**"),
        ANSWER.replace("Structure", "Warmth"),
        ANSWER.replace("Structure: 8\n", ""),
        ANSWER + "\nTotal: 55",
        "\n".join(reversed(ANSWER.split("\n"))),
        "Content: " + ANSWER,
        "Score: 5",
    ],
)
def test_anything_but_the_expected_lines_is_unparseable(text):
    with pytest.raises(ScoreError):
        parse_criteria(text, CRITERIA, CRITERION_SCALE)
    assert not re.fullmatch(REGEX, text)


def test_the_regex_is_plain_enough_for_every_grammar_backend():
    assert not re.search(r"\(\?|[\^$*+{}]|\\[^n]", REGEX)
    assert answer_opening(CRITERIA) == "Content: "


def test_a_criterion_that_would_need_escaping_is_refused():
    with pytest.raises(ValueError, match="plain letters"):
        criteria_regex(["content (total)"], CRITERION_SCALE)


@given(st.lists(st.integers(0, 20), min_size=5, max_size=5))
def test_whatever_the_regex_allows_is_read(points):
    lines = [f"{name.capitalize()}: {value}" for name, value in zip(CRITERIA, points, strict=True)]
    text = "\n".join(lines).removeprefix(answer_opening(CRITERIA))
    assert re.fullmatch(REGEX, text)
    assert criteria_score(text, CRITERIA, CRITERION_SCALE).score == sum(points)


@given(st.from_regex(REGEX, fullmatch=True))
def test_whatever_matches_the_regex_parses(text):
    assert 0 <= criteria_score(text, CRITERIA, CRITERION_SCALE).score <= 100


@given(st.text())
def test_free_text_never_crashes_the_parser(text):
    with pytest.raises(ScoreError):
        parse_criteria(text, CRITERIA, CRITERION_SCALE)


@given(st.lists(st.floats(0.001, 0.2), min_size=5, max_size=5))
def test_an_expected_score_stays_on_the_scale(probabilities):
    reading = expected_score(logs(*probabilities), FIVE, 0.0)
    assert 1 <= reading.score <= 5
    assert math.fsum(reading.distribution) == pytest.approx(1.0)
    assert reading.entropy is not None
    assert -1e-12 <= reading.entropy <= math.log(5) + 1e-12


@given(st.lists(st.floats(0.01, 0.2), min_size=5, max_size=5), st.floats(0.1, 1.0))
def test_an_expected_score_does_not_depend_on_the_mass(probabilities, share):
    whole = expected_score(logs(*probabilities), FIVE, 0.0)
    part = expected_score(logs(*(p * share for p in probabilities)), FIVE, 0.0)
    assert part.score == pytest.approx(whole.score)
