"""Advantages: hand-worked groups, and what holds for every group."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perm_ray.rewards.advantages import EPSILON, group_advantages

finite = st.floats(-10, 10, allow_nan=False)
groups = st.lists(st.one_of(st.none(), finite), max_size=12)


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
    with pytest.raises(ValueError, match="'group' or 'none'"):
        group_advantages([1.0, 2.0], "batch")
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
