"""Models on the same scenarios: means, paired differences, slices, and variety."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perm_ray.evaluation.model_comparison import Measured, compare_models, distinct_n

SHAPE = {"format": 1.0, "truncated": 0.0, "tokens": 40.0, "expression": 3.0}


def answers(rewards: list[float | None], tag: str = "language/en") -> list[Measured]:
    found = [SHAPE if reward is None else SHAPE | {"reward": reward} for reward in rewards]
    return [Measured(f"s{i}", (tag,), own, "You can be both.") for i, own in enumerate(found)]


def test_differences_are_paired_by_scenario() -> None:
    before = answers([0.0, 1.0, 2.0, None])
    after = answers([0.5, 1.5, 2.5, 9.0])
    first, second = compare_models({"one": before, "two": after}, seed=1)
    assert first.differences == {}
    difference = second.differences["reward"]
    assert (difference.mean, difference.low, difference.high, difference.pairs) == (0.5, 0.5, 0.5, 3)
    assert first.means["reward"] == 1.0
    assert {name: second.means[name] for name in SHAPE} == SHAPE


def test_several_answers_of_a_scenario_are_one_pair() -> None:
    twice = [*answers([0.0, 1.0]), *answers([2.0, 3.0])]
    _, second = compare_models({"one": answers([0.0, 0.0]), "two": twice}, seed=1)
    assert second.differences["reward"].pairs == 2
    assert second.differences["reward"].mean == 1.5


def test_slices_have_their_own_means() -> None:
    mixed = [*answers([1.0, 1.0]), *answers([0.0], "language/de")]
    (figures,) = compare_models({"one": mixed}, seed=1)
    assert figures.slices["language/de"]["reward"] == 0.0
    assert figures.slices["language/en"]["answers"] == 2.0


def test_a_measure_that_one_model_lacks_has_no_difference() -> None:
    other = [replace(each, measures={"reward": 1.0}) for each in answers([1.0, 2.0])]
    _, second = compare_models({"one": answers([1.0, 2.0]), "two": other}, seed=1)
    assert "expression" not in second.means
    assert "expression" not in second.differences


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["I am here. I am here."], 1, 0.5),
        (["I am here. I am here."], 2, 0.6),
        (["a b", "c d"], 2, 1.0),
        (["你好你好"], 1, 0.5),
        (["", "x"], 2, 0.0),
    ],
)
def test_distinct_n_is_the_share_of_different_n_grams(texts: list[str], n: int, expected: float) -> None:
    assert distinct_n(texts, n) == pytest.approx(expected)
