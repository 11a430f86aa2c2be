"""Rewards become advantages: how much better than its siblings each completion is.

The collector calls `advantages_of` when all groups of a step are complete; the trainer weighs each
completion's tokens by its advantage. In all of it None is a masked rollout: it is out of every mean and
standard deviation, and its advantage is 0, which gives it no gradient. A group with fewer than two
rewards, or with equal ones, has nothing to compare: exact zeros, not the rounding error of a mean divided
by 1e-4. Standard deviations are unbiased (divided by n - 1), as in TRL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from perm_ray.config.training import RewardConfig
from perm_ray.errors import NotFiniteError
from perm_ray.types import Completion, Prompt, Reward, Rollout, RolloutGroup

# Keeps a group of nearly equal rewards from being blown up; the value is TRL's.
EPSILON = 1e-4

Advantages = list[tuple[float, ...]]


def advantages_of(groups: Sequence[Sequence[Reward | None]], config: RewardConfig) -> Advantages:
    """Return the advantages of a step, group by group in the order of `groups`, as `rewards` is
    configured."""
    if config.composition == "normalize_then_sum":
        parts = [[None if reward is None else reward.parts for reward in group] for group in groups]
        names = next((known for group in parts for known in group if known is not None), {})
        return composed_advantages(parts, {name: config.weights.get(name, 1.0) for name in names})
    values = [[None if reward is None else reward.value for reward in group] for group in groups]
    return reward_advantages(values, config.advantage_scaling, config.advantage_baseline)


def reward_advantages(
    groups: Sequence[Sequence[float | None]], scaling: str = "group", baseline: str = "mean"
) -> Advantages:
    """GRPO's group-relative advantages (arXiv 2402.03300, section 4.1), and relatives.

    mean:           A_i = (r_i - mean(r)) / scale
    leave_one_out:  A_i = (r_i - mean of the others) / scale      RLOO (arXiv 2402.14740, section 2.2)

    group:  scale = std of the group + 1e-4
    batch:  scale = std of all rewards of the step + 1e-4
    none:   scale = 1                                             Dr. GRPO (arXiv 2503.20783)
    """
    if scaling not in ("group", "batch", "none") or baseline not in ("mean", "leave_one_out"):
        raise ValueError(
            "scaling must be 'group', 'batch' or 'none' and baseline 'mean' or 'leave_one_out', "
            f"found {scaling!r} and {baseline!r}"
        )
    everything = _known([reward for group in groups for reward in group])
    result: Advantages = []
    for group in groups:
        known = _known(group)
        if len(known) < 2 or min(known) == max(known):
            result.append((0.0,) * len(group))
            continue
        divisor = 1.0
        if scaling != "none":
            divisor = _std(known if scaling == "group" else everything) + EPSILON
        if baseline == "leave_one_out":  # r - (sum - r) / (n - 1) = (r - mean) * n / (n - 1)
            divisor *= (len(known) - 1) / len(known)
        mean = _mean(known)
        result.append(tuple(0.0 if reward is None else (reward - mean) / divisor for reward in group))
    return result


def composed_advantages(
    groups: Sequence[Sequence[Mapping[str, float] | None]], weights: Mapping[str, float]
) -> Advantages:
    """GDPO: every part of the reward is normalised in its group before they are summed, so that none
    drowns because its spread is small (arXiv 2601.05242, eq. 4 to 6; TRL's `normalize_then_sum`).

        z_k = (r_k - mean of the group) / (std of the group + 1e-4)      R = sum of w_k z_k
        A   = (R - mean of the step) / (std of the step + 1e-4)

    Each entry holds the parts r_k of one reward, by the names in `weights`.
    """
    sums = [_weighted_scores(group, weights) for group in groups]
    known = _known([total for group in sums for total in group])
    if len(known) < 2:
        return [(0.0,) * len(group) for group in groups]
    mean, divisor = _mean(known), _std(known) + EPSILON
    return [
        tuple(0.0 if total is None else (total - mean) / divisor for total in group)
        if any(group)
        else (0.0,) * len(group)
        for group in sums
    ]


def _weighted_scores(
    group: Sequence[Mapping[str, float] | None], weights: Mapping[str, float]
) -> list[float | None]:
    """R of each rollout in the group. All zeros when no part differs, or there is nothing to compare."""
    columns = [
        reward_advantages([[None if parts is None else parts[name] for parts in group]])[0]
        for name in weights
    ]
    scores = zip(*columns, strict=True)
    return [
        None if parts is None else math.fsum(w * z for w, z in zip(weights.values(), row, strict=True))
        for parts, row in zip(group, scores, strict=True)
    ]


def _known(rewards: Sequence[float | None]) -> list[float]:
    known = [reward for reward in rewards if reward is not None]
    if not all(map(math.isfinite, known)):
        raise ValueError(f"rewards must be finite numbers or None, found {list(rewards)}")
    return known


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _std(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def make_groups(
    prompts: Sequence[Prompt], rollouts: Sequence[Sequence[Rollout]], config: RewardConfig
) -> tuple[RolloutGroup, ...]:
    """Return the groups with their advantages, which may depend on all of them: none is a number when a
    reward is not finite, which `check_finite` tells of."""
    rewards = [[rollout.reward for rollout in group] for group in rollouts]
    if all(math.isfinite(reward.value) for group in rewards for reward in group if reward):
        advantages = advantages_of(rewards, config)
    else:
        advantages = [(math.nan,) * len(group) for group in rewards]
    return tuple(
        RolloutGroup(prompt, tuple(group), tuple(values))
        for prompt, group, values in zip(prompts, rollouts, advantages, strict=True)
    )


def check_finite(groups: Sequence[RolloutGroup]) -> None:
    """Raise `NotFiniteError`, which names the rollout, for a reward or an advantage that is not finite."""
    named = [
        *(("reward", r.completion, r.reward.value) for group in groups for r in group.rollouts if r.reward),
        *(
            ("advantage", rollout.completion, advantage)
            for group in groups
            for rollout, advantage in zip(group.rollouts, group.advantages, strict=True)
        ),
    ]
    for kind, completion, value in named:
        if not math.isfinite(value):
            raise NotFiniteError(
                f"The {kind} of {_name_of(completion)} must be finite, found {value}: look at what its "
                "judges scored, and at the section rewards."
            )


def _name_of(completion: Completion) -> str:
    """Return a rollout's name for messages, as it is found in the sample files."""
    scenario, version = completion.scenario_id, completion.version
    return f"completion {completion.index} of scenario {scenario} (policy version {version})"
