"""Which rollouts a person is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perm_ray.tracking.chosen import choose, disagreement, failures, mean_rewards
from perm_ray.types import FinishReason, Rollout, RolloutGroup, Sections
from tests.support.fakes import fake_completion, fake_group, fake_rollout


def rollout(scenario: str, index: int, reward: float | None, **scores: float | None) -> Rollout:
    return fake_rollout(fake_completion(scenario, index), scores or {"a": 3.0, "b": 3.0}, reward)


def groups() -> list[RolloutGroup]:
    return [
        fake_group("one", [rollout("one", 0, 0.9), rollout("one", 1, 0.5, a=5.0, b=1.0)]),
        fake_group("two", [rollout("two", 0, 0.1), rollout("two", 1, 0.6), rollout("two", 2, 0.7)]),
        fake_group("three", [rollout("three", 0, None, a=None, b=3.0), rollout("three", 1, 0.4)]),
    ]


def test_one_of_every_reason_comes_first() -> None:
    chosen = choose(groups(), {"two": 0.2, "one": 0.7, "three": 0.5}, 5)
    found = [(entry.rollout.completion.scenario_id, entry.rollout.completion.index) for entry in chosen]
    assert found == [("one", 0), ("two", 0), ("one", 1), ("two", 2), ("three", 0)]
    assert [entry.why for entry in chosen] == [
        "the best reward",
        "the worst reward",
        "the most disagreement between perspectives",
        "the most changed scenario: +0.267 since the last time",
        "a failed",
    ]


def test_the_rest_is_spread_over_the_rewards_and_nothing_is_there_twice() -> None:
    many = [fake_group("one", [rollout("one", index, index / 100) for index in range(100)])]
    chosen = choose(many, {}, 6)
    rewards = [entry.rollout.reward.value for entry in chosen if entry.rollout.reward]
    assert rewards[:2] == [0.99, 0.0]
    assert sorted(rewards) == [0.0, 0.19, 0.39, 0.59, 0.79, 0.99]
    everything = choose(groups(), {}, 50)
    assert len(everything) == 7
    assert len({id(entry.rollout) for entry in everything}) == 7


def test_of_a_scenario_that_got_worse_the_worst_is_shown() -> None:
    (best, worst, changed) = choose(
        [fake_group("one", [rollout("one", 0, 0.9), rollout("one", 1, 0.0), rollout("one", 2, 0.95)]),
         fake_group("two", [rollout("two", 0, 0.2), rollout("two", 1, 0.3)])],
        {"two": 0.9},
        3,
    )  # fmt: skip
    assert (best.rollout.completion.index, worst.rollout.completion.index) == (2, 1)
    assert (changed.rollout.completion.scenario_id, changed.rollout.completion.index) == ("two", 0)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_a_step_with_nothing_or_nothing_but_failures(count: int) -> None:
    assert choose([], {}, count) == []
    masked = [fake_group("one", [rollout("one", index, None, a=None) for index in range(2)])]
    chosen = choose(masked, {"one": 0.3}, count)
    assert [entry.why for entry in chosen] == ["a failed", "to fill the number"][:count]
    assert mean_rewards(masked) == {}


def test_failures_have_kinds() -> None:
    fine = rollout("one", 0, 0.5)
    assert failures(fine) == []
    cut = replace(fine, completion=replace(fine.completion, finish_reason=FinishReason.LENGTH))
    assert failures(cut) == ["truncated"]
    assert failures(replace(fine, sections=Sections("x", None))) == ["a section is missing"]
    assert failures(replace(fine, reward=None, masked_because="nan")) == ["masked: nan"]
    assert disagreement(fine) == 0.0
    assert disagreement(rollout("one", 0, 0.5, a=5.0, b=1.0)) == pytest.approx(0.8)
    assert disagreement(rollout("one", 0, None, a=None)) == 0.0
