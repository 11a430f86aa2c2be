"""How often judges prefer what people prefer."""

from __future__ import annotations

import pytest

from perm_ray.config.load import load_config
from perm_ray.data.items import Preference, make_scenario
from perm_ray.evaluation.calibration.pairs import figure_rows, pair_figures, preferred_shares, scores_of
from perm_ray.judges.startup import build_perspectives
from perm_ray.types import JudgeItem, Judgment, Sections, Status


def pair(number: int, scenario: int) -> Preference:
    about = make_scenario("Ana", "She waits.", f"Call {scenario}.")
    better, worse = (JudgeItem(f"{number}/{side}", about, Sections(None, side)) for side in ("b", "w"))
    return Preference(better, worse, "reception")


PAIRS = [pair(0, 0), pair(1, 0), pair(2, 1), pair(3, 2)]
FIRST = {"0/b": 4.0, "0/w": 2.0, "1/b": 3.0, "1/w": 3.0, "2/b": 1.0, "2/w": 5.0, "3/b": None, "3/w": 1.0}
SECOND = {**FIRST, "2/b": 5.0, "2/w": 1.0}


def test_ties_count_one_half_and_a_missing_score_nothing() -> None:
    shares = preferred_shares(PAIRS, FIRST)
    assert list(shares.values()) == [0.75, 0.0]  # the third scenario has a reply without a score
    swapped = [Preference(p.worse, p.better, p.perspective) for p in PAIRS]
    assert [1 - share for share in preferred_shares(swapped, FIRST).values()] == list(shares.values())


def test_a_change_is_paired_over_scenarios() -> None:
    setups = [{"reception": FIRST, "none": dict.fromkeys(FIRST)}, {"reception": SECOND, "none": FIRST}]
    figures = pair_figures(PAIRS, setups, seed=1)
    assert figures.keys() == {"reception"}
    before, after, change = figures["reception"]
    assert (before.mean, after.mean, change.mean) == pytest.approx((0.375, 0.875, 0.5))
    assert before.pairs == change.pairs == 2
    assert change.low <= change.mean <= change.high
    ((name, *texts, count),) = figure_rows(figures)
    assert (name, len(texts), count) == ("reception", 3, "2")
    assert texts[0].startswith("0.38 (0.00 to 0.75")


def test_a_judge_that_sees_what_people_see_is_always_right() -> None:
    (share,) = pair_figures(PAIRS, [{"x": {f"{n}/{s}": float(s == "b") for n in range(4) for s in "bw"}}], 1)[
        "x"
    ]
    assert (share.mean, share.low, share.high) == (1.0, 1.0, 1.0)


def test_scores_have_every_perspective_and_the_reward() -> None:
    config = load_config("local")
    perspectives = build_perspectives(config.judges)
    good = {name: Judgment(name, Status.OK, score=4.0) for name in perspectives}
    failed = {**good, "reception": Judgment("reception", Status.FAILED, reason="lost")}
    scores = scores_of({"a": good, "b": failed}, perspectives, config.rewards)
    assert scores.keys() == {*perspectives, "reward"}
    assert scores["reception"] == {"a": 4.0, "b": None}
    assert scores["reward"]["a"] is not None
    assert scores["reward"]["b"] is None
