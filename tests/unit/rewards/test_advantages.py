"""Advantages: hand-worked groups, and what holds for every group. `test_oracle.py` has TRL's."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perm_ray.config.training import RewardConfig
from perm_ray.rewards.advantages import EPSILON, advantages_of, composed_advantages, reward_advantages
from perm_ray.types import Reward

finite = st.floats(-10, 10, allow_nan=False)
groups = st.lists(st.one_of(st.none(), finite), max_size=12)


def group_advantages(rewards, scaling="group"):
    (advantages,) = reward_advantages([rewards], scaling)
    return advantages


def test_a_hand_worked_group():
    # mean 2, deviations -1, 0, 1, unbiased std 1
    edge = 1 / (1 + EPSILON)
    assert group_advantages([1.0, 2.0, 3.0]) == pytest.approx((-edge, 0.0, edge))


def test_the_std_is_unbiased():
    # deviations -1, 1: n - 1 gives sqrt(2), n would give 1
    assert group_advantages([0.0, 2.0])[1] == pytest.approx(1 / (math.sqrt(2) + EPSILON))


def test_without_scaling_only_the_mean_is_taken_away():
    assert group_advantages([1.0, 2.0, 6.0], "none") == pytest.approx((-2.0, -1.0, 3.0))


def test_a_masked_rollout_is_out_of_the_baseline():
    assert group_advantages([1.0, None, 3.0], "none") == (-1.0, 0.0, 1.0)


@pytest.mark.parametrize("rewards", [[], [None], [0.7], [0.7, None, None], [None, None]])
def test_fewer_than_two_rewards_teach_nothing(rewards):
    assert group_advantages(rewards) == (0.0,) * len(rewards)


def test_an_unknown_scaling_and_a_nan_are_refused():
    with pytest.raises(ValueError, match="'group', 'batch' or 'none'"):
        group_advantages([1.0, 2.0], "step")
    with pytest.raises(ValueError, match="finite"):
        group_advantages([1.0, math.nan])


@given(finite, st.integers(2, 12), st.sampled_from(["group", "none"]))
def test_equal_rewards_give_exact_zeros(reward, count, scaling):
    assert group_advantages([reward] * count, scaling) == (0.0,) * count


@given(groups, st.sampled_from(["group", "none"]))
def test_advantages_sum_to_zero_and_masked_ones_are_zero(rewards, scaling):
    advantages = group_advantages(rewards, scaling)
    assert len(advantages) == len(rewards)
    assert math.fsum(advantages) == pytest.approx(0.0, abs=1e-9)
    assert all(a == 0.0 for r, a in zip(rewards, advantages, strict=True) if r is None)


@given(groups, st.integers(0, 12))
def test_a_masked_rollout_changes_nothing_for_the_others(rewards, at):
    at = min(at, len(rewards))
    with_masked = group_advantages([*rewards[:at], None, *rewards[at:]])
    assert with_masked[:at] + with_masked[at + 1 :] == group_advantages(rewards)


@given(st.lists(finite, min_size=2, max_size=12))
def test_advantages_keep_the_order_of_rewards(rewards):
    advantages = group_advantages(rewards)
    ranked = sorted(zip(rewards, advantages, strict=True))
    assert [a for _, a in ranked] == sorted(advantages)


# ---- over a whole step ---------------------------------------------------------------------------


def test_batch_scaling_divides_every_group_by_the_deviation_of_the_step():
    # 0, 2, 4, 6: mean 3, squares 9 + 1 + 1 + 9 = 20, std sqrt(20 / 3); the masked one is out of it
    scale = math.sqrt(20 / 3) + EPSILON
    first, second = reward_advantages([[0.0, 2.0], [4.0, None, 6.0]], "batch")
    assert first == pytest.approx((-1 / scale, 1 / scale))
    assert second == pytest.approx((-1 / scale, 0.0, 1 / scale))


def test_leave_one_out_compares_with_the_others():
    # 1 - (2 + 6)/2, 2 - (1 + 6)/2, 6 - (1 + 2)/2
    (advantages,) = reward_advantages([[1.0, 2.0, None, 6.0]], "none", "leave_one_out")
    assert advantages == pytest.approx((-3.0, -1.5, 0.0, 4.5))


@given(st.lists(groups, max_size=4), st.sampled_from(["group", "batch", "none"]))
def test_a_masked_rollout_changes_nothing_in_a_step(step, scaling):
    with_masked = reward_advantages([[None, *group] for group in step], scaling)
    assert [group[1:] for group in with_masked] == reward_advantages(step, scaling)
    assert all(group[0] == 0.0 for group in with_masked)


def test_no_part_drowns_because_its_spread_is_small():
    # Two parts prefer the first, by little; the sum only hears the third.
    parts = [{"a": 0.52, "b": 0.32, "wide": 0.0}, {"a": 0.50, "b": 0.30, "wide": 1.0}]
    (advantages,) = composed_advantages([parts], dict.fromkeys(parts[0], 1.0))
    (summed,) = reward_advantages([[sum(part.values()) for part in parts]])
    assert advantages == pytest.approx((1 / math.sqrt(2), -1 / math.sqrt(2)), abs=1e-3)
    assert summed == pytest.approx((-1 / math.sqrt(2), 1 / math.sqrt(2)), abs=1e-3)


def test_a_composed_step_by_hand():
    # One part, two groups: z = -+0.5 / (sqrt(0.5) + e) and -+1 / (sqrt(2) + e), all +-s; R = 3 z.
    low, high = 0.5 / (math.sqrt(0.5) + EPSILON), 1 / (math.sqrt(2) + EPSILON)
    totals = [-3 * low, 3 * low, -3 * high, 3 * high]
    scale = math.sqrt(sum(total**2 for total in totals) / 3) + EPSILON
    step = [[{"a": 0.0}, {"a": 1.0}], [{"a": 5.0}, None, {"a": 7.0}], [{"a": 2.0}, {"a": 2.0}]]
    first, second, flat = composed_advantages(step[:2] + step[2:], {"a": 3.0})
    widened = (
        math.sqrt(sum(total**2 for total in totals) / 5) + EPSILON
    )  # with the two zeros of the flat group
    assert first == pytest.approx((-3 * low / widened, 3 * low / widened))
    assert second == pytest.approx((-3 * high / widened, 0.0, 3 * high / widened))
    assert flat == (0.0, 0.0)
    assert composed_advantages(step[:2], {"a": 3.0})[0][1] == pytest.approx(3 * low / scale)


@pytest.mark.parametrize("step", [[], [[]], [[None, None]], [[{"a": 1.0}]], [[{"a": 1.0}, None]]])
def test_a_composed_step_with_nothing_to_compare_is_all_zeros(step):
    assert composed_advantages(step, {"a": 1.0}) == [(0.0,) * len(group) for group in step]


def test_the_configuration_chooses():
    def reward(value, **parts):
        return Reward(value, value, 0.0, 0.0, parts)

    step = [[reward(0.0, reception=0.2, length=0.0), None, reward(2.0, reception=0.4, length=-1.0)]]
    assert advantages_of(step, RewardConfig()) == reward_advantages([[0.0, None, 2.0]])
    batch = RewardConfig(advantage_scaling="none", advantage_baseline="leave_one_out")
    assert advantages_of(step, batch) == [(-2.0, 0.0, 2.0)]
    composed = RewardConfig(composition="normalize_then_sum", weights={"length": 2.0})
    parts = [[{"reception": 0.2, "length": 0.0}, None, {"reception": 0.4, "length": -1.0}]]
    assert advantages_of(step, composed) == composed_advantages(parts, {"reception": 1.0, "length": 2.0})
    assert advantages_of(step, composed)[0][0] > 0  # the length counts twice, and the first is the shorter
