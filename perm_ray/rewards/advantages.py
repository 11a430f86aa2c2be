"""A group's rewards become advantages: how much better than its siblings each completion is.

The driver calls this when a group is complete; the trainer weighs each completion's tokens by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# Keeps a group of nearly equal rewards from being blown up; the value is TRL's.
EPSILON = 1e-4


def group_advantages(rewards: Sequence[float | None], scaling: str = "group") -> tuple[float, ...]:
    """GRPO's group-relative advantages (arXiv 2402.03300, section 4.1), in the order of `rewards`.

        group:  A_i = (r_i - mean(r)) / (std(r) + 1e-4)      std unbiased: divided by n - 1, as TRL does
        none:   A_i =  r_i - mean(r)

    None is a masked rollout: it is out of mean and std, and its advantage is 0, which gives it no
    gradient. Fewer than two unmasked rewards have nothing to be compared with: all 0. Equal rewards
    give exact zeros, not the rounding error of their mean divided by 1e-4.
    """
    if scaling not in ("group", "none"):
        raise ValueError(f"scaling must be 'group' or 'none', found {scaling!r}")
    known = [reward for reward in rewards if reward is not None]
    if not all(map(math.isfinite, known)):
        raise ValueError(f"rewards must be finite numbers or None, found {list(rewards)}")
    if len(known) < 2 or min(known) == max(known):
        return (0.0,) * len(rewards)
    mean = math.fsum(known) / len(known)
    divisor = 1.0
    if scaling == "group":
        variance = math.fsum((reward - mean) ** 2 for reward in known) / (len(known) - 1)
        divisor = math.sqrt(variance) + EPSILON
    return tuple(0.0 if reward is None else (reward - mean) / divisor for reward in rewards)
