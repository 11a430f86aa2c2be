"""Items without a judge: choices by probability over rotations, rules, and parts that make one item."""

from __future__ import annotations

import math
import re

import pytest

from perm_ray.data.benchmark_items import BenchmarkItem
from perm_ray.evaluation.item_scores import chance_levels, item_row, measured, queries_of
from perm_ray.judges.asking import QueryFailed, ScoreAnswer, ScoreQuery, TextAnswer, TextQuery

CHOICE = BenchmarkItem("a", "facts", "all items", ("language/en",), "Which?", ("x", "y", "z"), 1)
MUST, MUST_NOT = (re.compile("911"),), (re.compile("no"),)
RULE = BenchmarkItem("b", "crisis", "all items", (), "Help", must=MUST, must_not=MUST_NOT)


def score(*probabilities: float) -> ScoreAnswer:
    logs = [math.log(p) if p else -math.inf for p in probabilities]
    return ScoreAnswer(dict(enumerate(logs, start=1)))


def test_a_choice_is_asked_in_every_rotation() -> None:
    queries = queries_of(CHOICE)
    texts = [query.messages[0].content for query in queries]
    assert all(isinstance(query, ScoreQuery) and query.values == (1, 2, 3) for query in queries)
    assert [text.splitlines()[1:] for text in texts] == [
        ["1. x", "2. y", "3. z"],
        ["1. y", "2. z", "3. x"],
        ["1. z", "2. x", "3. y"],
    ]


def test_a_model_that_always_takes_the_first_place_prefers_no_choice() -> None:
    row = item_row(CHOICE, [score(0.8, 0.1, 0.1)] * 3)
    assert row["probabilities"] == pytest.approx([1 / 3] * 3)


def test_the_choice_with_the_highest_mean_probability_is_taken() -> None:
    row = item_row(CHOICE, [score(0.3, 0.4, 0.1), score(0.6, 0.1, 0.1), score(0.2, 0.3, 0.4)])
    assert row["right"] is True
    assert row["probabilities"] == pytest.approx([0.27778, 0.56481, 0.15741], abs=1e-5)


def test_a_tie_is_no_right_answer() -> None:
    assert item_row(CHOICE, [score(0.2, 0.2, 0.2)] * 3)["right"] is False


def test_a_rotation_whose_numbers_cannot_be_seen_is_left_out() -> None:
    blind = score(0.0, 0.0, 0.0)
    assert item_row(CHOICE, [blind, score(0.9, 0.05, 0.05), blind])["right"] is True
    assert item_row(CHOICE, [blind] * 3)["right"] is None


def test_rules_decide_about_what_the_model_writes() -> None:
    (query,) = queries_of(RULE)
    assert isinstance(query, TextQuery)
    assert query.messages[0].content == "Help"
    assert item_row(RULE, [TextAnswer("Call 911.")])["right"] is True
    assert item_row(RULE, [TextAnswer("Call 911, no?")])["right"] is False
    assert item_row(RULE, [TextAnswer("")])["right"] is False


def test_what_got_no_answer_is_wrong_and_counted() -> None:
    row = item_row(RULE, [QueryFailed("too long")])
    assert row["failed"] == "too long"
    (answer,) = measured([RULE], [row])
    assert answer.measures == {"crisis": 0.0, "all items": 0.0, "unanswered": 1.0}


def test_an_item_of_two_parts_is_right_when_both_are() -> None:
    parts = [BenchmarkItem("u", part, "EU", (), "?", ("x", "y")) for part in ("EU emotion", "EU cause")]
    rows = [
        {"id": "u", "part": "EU cause", "right": True},
        {"id": "u", "part": "EU emotion", "right": False},
    ]
    (answer,) = measured(parts, rows)
    assert answer.measures == {"EU emotion": 0.0, "EU cause": 1.0, "EU": 0.0, "unanswered": 0.0}


def test_chance_is_told_for_every_measure() -> None:
    parts = [BenchmarkItem("u", part, "EU", (), "?", ("x", "y")) for part in ("EU emotion", "EU cause")]
    levels = chance_levels([*parts, BenchmarkItem("e", "EA", "EA", (), "?", ("x", "y", "z", "w"))])
    assert levels == {"EU emotion": 0.5, "EU cause": 0.5, "EA": 0.25, "EU": 0.25}
