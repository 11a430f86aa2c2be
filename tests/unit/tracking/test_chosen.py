"""Which rollouts a person is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perm_ray.tracking.chosen import choose, disagreement, failures, mean_rewards
from perm_ray.tracking.samples import RolloutRow, rollout_row
from tests.support.fakes import fake_completion, fake_prompt, fake_rollout


def row(scenario: str, index: int, reward: float | None, **scores: float | None) -> RolloutRow:
    rollout = fake_rollout(fake_completion(scenario, index), scores or {"a": 3.0, "b": 3.0}, reward)
    return rollout_row(10, fake_prompt(scenario), rollout, 0.0, ())


def rows() -> list[RolloutRow]:
    return [
        row("one", 0, 0.9),
        row("one", 1, 0.5, a=5.0, b=1.0),
        row("two", 0, 0.1),
        row("two", 1, 0.6),
        row("two", 2, 0.7),
        row("three", 0, None, a=None, b=3.0),
        row("three", 1, 0.4),
    ]


def test_one_of_every_reason_comes_first() -> None:
    chosen = choose(rows(), {"two": 0.2, "one": 0.7, "three": 0.5}, 5)
    found = [(entry.scenario_id, entry.index) for entry, _ in chosen]
    assert found == [("one", 0), ("two", 0), ("one", 1), ("two", 2), ("three", 0)]
    assert [why for _, why in chosen] == [
        "the best reward",
        "the worst reward",
        "the most disagreement between perspectives",
        "the most changed scenario: +0.267 since the last time",
        "a failed",
    ]


def test_the_rest_is_spread_over_the_rewards_and_nothing_is_there_twice() -> None:
    many = [row("one", index, index / 100) for index in range(100)]
    chosen = choose(many, {}, 6)
    rewards = [entry.reward.value for entry, _ in chosen if entry.reward]
    assert rewards[:2] == [0.99, 0.0]
    assert sorted(rewards) == [0.0, 0.19, 0.39, 0.59, 0.79, 0.99]
    everything = choose(rows(), {}, 50)
    assert len(everything) == 7
    assert len({id(entry) for entry, _ in everything}) == 7


def test_of_a_scenario_that_got_worse_the_worst_is_shown() -> None:
    ((best, _), (worst, _), (changed, _)) = choose(
        [row("one", 0, 0.9), row("one", 1, 0.0), row("one", 2, 0.95),
         row("two", 0, 0.2), row("two", 1, 0.3)],
        {"two": 0.9},
        3,
    )  # fmt: skip
    assert (best.index, worst.index) == (2, 1)
    assert (changed.scenario_id, changed.index) == ("two", 0)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_a_step_with_nothing_or_nothing_but_failures(count: int) -> None:
    assert choose([], {}, count) == []
    masked = [row("one", index, None, a=None) for index in range(2)]
    chosen = choose(masked, {"one": 0.3}, count)
    assert [why for _, why in chosen] == ["a failed", "to fill the number"][:count]
    assert mean_rewards(masked) == {}


def test_failures_have_kinds() -> None:
    fine = row("one", 0, 0.5)
    assert failures(fine) == []
    cut = replace(fine, finish_reason="length")
    assert failures(cut) == ["truncated"]
    assert failures(replace(fine, response=None)) == ["a section is missing"]
    assert failures(replace(fine, reward=None, masked=True, masked_because="nan")) == ["masked: nan"]
    assert disagreement(fine) == 0.0
    assert disagreement(row("one", 0, 0.5, a=5.0, b=1.0)) == pytest.approx(0.8)
    assert disagreement(row("one", 0, None, a=None)) == 0.0
