"""Pairs of replies: what a judge that only looks at places is worth, lengths, and strengths."""

from __future__ import annotations

import math

import pytest

from perm_ray.evaluation.pairwise import (
    FIRST,
    SECOND,
    TIE,
    Preference,
    bradley_terry,
    length_controlled,
    pair_figures,
    pair_query,
    preference,
    verdict,
)
from perm_ray.judges.asking import QueryFailed, ScoreAnswer
from perm_ray.types import Scenario, Turn

SCENARIO = Scenario("a", "Ana", "It rains.", (Turn("seeker", "Oh no."),))


def preferences(*verdicts: tuple[int, int], texts: tuple[str, str] = ("one", "two")) -> list[Preference]:
    return [preference(f"s{i}", texts, pair) for i, pair in enumerate(verdicts)]


def test_both_replies_are_shown_in_the_order_that_is_asked() -> None:
    text = pair_query(SCENARIO, "Stay.", "Go.", "fence").messages[-1].content
    assert text.index("Stay.") < text.index("Go.")
    assert text.count("[begin fence]") == 2
    assert "Oh no." in text


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        ({1: -0.1, 2: -3.0, 3: -4.0}, FIRST),
        ({1: -2.0, 2: -0.5, 3: -4.0}, SECOND),
        ({1: -1.0, 2: -1.0, 3: -4.0}, TIE),
        ({1: -math.inf, 2: -math.inf, 3: -math.inf}, None),
    ],
)
def test_the_likeliest_number_is_the_verdict(logprobs: dict[int, float], expected: int | None) -> None:
    assert verdict(ScoreAnswer(logprobs)) == expected
    assert verdict(QueryFailed("too long")) is None


def test_a_judge_that_always_says_the_first_gives_half_and_is_never_consistent() -> None:
    figures = pair_figures(("one", "two"), preferences(*[(FIRST, FIRST)] * 6), 0, seed=1)
    assert (figures.win_rate.mean, figures.win_rate.low, figures.win_rate.high) == (0.5, 0.5, 0.5)
    assert figures.consistency == 0.0


def test_a_judge_that_sees_the_replies_is_consistent() -> None:
    figures = pair_figures(
        ("one", "two"), preferences((FIRST, SECOND), (SECOND, FIRST), (TIE, TIE)), 2, seed=1
    )
    assert figures.consistency == 1.0
    assert figures.win_rate.mean == 0.5
    assert figures.ties == pytest.approx(1 / 3)
    assert figures.unanswered == 2


def test_a_win_that_is_length_alone_is_taken_out() -> None:
    won = preferences((FIRST, SECOND), (FIRST, SECOND), (TIE, TIE), texts=("long " * 40, "short"))
    lost = preferences((SECOND, FIRST), (SECOND, FIRST), (TIE, TIE), texts=("short", "long " * 40))
    rate = length_controlled([*won, *won, *lost])
    assert rate == pytest.approx(0.5, abs=0.02)
    assert length_controlled(preferences((FIRST, SECOND), (TIE, TIE))) == 0.75  # all equally long
    assert length_controlled([*won[2:], *lost[2:]]) == 0.5  # ties, whatever the lengths


def test_strengths_order_models_that_beat_each_other() -> None:
    strengths = bradley_terry({("a", "b"): [1, 1, 0.5], ("b", "c"): [1, 0.5, 1], ("a", "c"): [1, 1, 1]})
    assert strengths["a"] > strengths["b"] > strengths["c"]
    assert sum(strengths.values()) == pytest.approx(0.0)
    assert bradley_terry({("a", "b"): [0.5, 0.5]}) == {"a": 0.0, "b": 0.0}
