"""The held-out evaluation: what is kept of it, and how before and after are compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pytest

from perm_ray.evaluation.heldout import HeldoutResult, compare, heldout_result
from perm_ray.tracking.rollout_metrics import rollout_metrics
from perm_ray.types import Judgment, Reward, Rollout, RolloutGroup, Sections, Status
from tests.support.fakes import fake_completion, fake_prompt


def group(scenario_id: str, *rewards: float | None) -> RolloutGroup:
    """One rollout for each reward; None is a masked one."""
    rollouts = tuple(
        Rollout(
            fake_completion(scenario_id, i),
            Sections("She is proud.", "How lovely!"),
            {"resonation": Judgment("resonation", Status.OK, 4.0, mass=0.9)},
            None if value is None else Reward(value, value + 0.1, -0.1, 0.0),
        )
        for i, value in enumerate(rewards)
    )
    return RolloutGroup(fake_prompt(scenario_id), rollouts, (0.0,) * len(rollouts))


def result(**rewards: float) -> HeldoutResult:
    return HeldoutResult({"reward/mean": sum(rewards.values()) / len(rewards)}, rewards)


def difference(before: HeldoutResult, after: HeldoutResult, seed: int = 42) -> Mapping[str, Any]:
    found = compare(before, after, seed)["difference"]
    assert isinstance(found, dict)
    return found


def test_a_scenario_counts_with_the_mean_of_its_rewards() -> None:
    groups = [group("a", 0.2, 0.6), group("b", 0.5)]
    assert heldout_result(groups, {}).rewards == {"a": pytest.approx(0.4), "b": 0.5}


def test_masked_rollouts_are_left_out_and_a_scenario_that_is_all_masked_is_missing() -> None:
    groups = [group("a", 0.2, None), group("b", None, None), group("c", 0.0)]
    assert heldout_result(groups, {}).rewards == {"a": 0.2, "c": 0.0}  # a reward of 0 is a reward


def test_only_what_describes_the_policy_is_reported() -> None:
    groups = [group("a", 0.2, 0.6)]
    reported = heldout_result(groups, rollout_metrics(groups)).metrics
    assert reported == {
        "reward/mean": pytest.approx(0.4),
        "reward/empathy": pytest.approx(0.5),
        "reward/bystander": pytest.approx(-0.1),
        "judge/resonation/mean": 4.0,
        "format/valid": 1.0,
        "rollout/length_mean": 3.0,
    }


def test_a_result_survives_the_checkpoint_it_is_kept_in() -> None:
    kept = heldout_result([group("a", 0.2)], {"reward/mean": 0.2})
    assert HeldoutResult(**json.loads(json.dumps(asdict(kept)))) == kept


def test_the_difference_is_paired_by_scenario_whatever_their_order() -> None:
    before, after = result(a=0.1, b=0.5, c=0.9), result(c=1.0, a=0.2, b=0.6)
    found = difference(before, after)
    assert found["pairs"] == 3
    # Every scenario gained the same, however far apart they are: paired, there is no doubt left.
    assert [found[name] for name in ("mean", "low", "high")] == [pytest.approx(0.1)] * 3


def test_the_interval_is_around_the_mean_and_the_same_for_the_same_seed() -> None:
    before = HeldoutResult(rewards={f"s{i}": 0.0 for i in range(20)})
    after = HeldoutResult(rewards={f"s{i}": (-1) ** i * 0.2 + 0.05 for i in range(20)})
    found = difference(before, after)
    assert found["low"] < 0 < found["mean"] < found["high"]
    assert found["mean"] == pytest.approx(0.05)
    assert difference(before, after) == found


def test_a_scenario_without_a_reward_on_one_side_is_left_out_of_the_difference() -> None:
    found = difference(result(a=0.1, b=0.2, lost=5.0), result(a=0.3, b=0.4, new=-5.0))
    assert found["pairs"] == 2
    assert found["mean"] == pytest.approx(0.2)


def test_the_report_has_both_sides_and_plain_values() -> None:
    report = compare(result(a=0.1, b=0.2), result(a=0.3, b=0.4), seed=1)
    assert report["before"] == {"reward/mean": pytest.approx(0.15)}
    assert report["after"] == {"reward/mean": pytest.approx(0.35)}
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize("after", [result(a=0.3), result(z=0.3, y=0.4)])
def test_fewer_than_two_shared_scenarios_give_no_difference(after: HeldoutResult) -> None:
    assert "difference" not in compare(result(a=0.1, b=0.2), after, seed=1)
