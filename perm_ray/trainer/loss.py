"""GRPO's objective, token by token: pure functions of tensors, called by `learner.py`.

Every tensor is one-dimensional, one entry per completion token of a packed micro-batch, in float32.
Log-probabilities are in nats; an advantage has no unit and is repeated for its completion's tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """The clipped surrogate of PPO, per token: -min(r A, clip(r, 1 - low, 1 + high) A).

    r = exp(logprobs - old_logprobs). PPO (arXiv 1707.06347, eq. 7) with GRPO's group advantage
    (arXiv 2402.03300, eq. 3); two bounds instead of one are DAPO's (arXiv 2503.14476, eq. 10).
    """
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def is_clipped(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """True for each token whose gradient `policy_loss` cuts off: r moved past the bound A pushes towards."""
    ratio = torch.exp(logprobs - old_logprobs)
    too_low = (ratio < 1 - clip_low) & (advantages < 0)
    too_high = (ratio > 1 + clip_high) & (advantages > 0)
    return too_low | too_high


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """KL(policy || reference) estimated per token: exp(d) - d - 1 with d = reference - policy.

    Never negative and unbiased for tokens sampled from the policy: Schulman's third estimator
    (http://joschu.net/blog/kl-approx.html), as in GRPO (arXiv 2402.03300, eq. 4).
    """
    difference = reference_logprobs - logprobs
    return torch.exp(difference) - difference - 1


def dapo(token_losses: Tensor, total_completion_tokens: int) -> Tensor:
    """Token-level aggregation: this micro-batch's sum over the completion tokens of the WHOLE step.

    The total counts every rank and micro-batch, so each token weighs the same however the step was
    split, and a long answer is not made cheap by its length (DAPO, arXiv 2503.14476, eq. 12).
    """
    return token_losses.sum() / total_completion_tokens
