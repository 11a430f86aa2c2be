"""The terms of GRPO's objective, token by token: pure functions of tensors, joined by `objective.py`.

Every tensor is one-dimensional, one entry per completion token of a packed micro-batch, in float32.
Log-probabilities are in nats; an advantage has no unit and is repeated for its completion's tokens.
A masked rollout is not among the tokens, and does not count in any total.
"""

from __future__ import annotations

import torch
from torch import Tensor

from perm_ray.trainer.segments import Segments

# ---- the ratio of the policy to the one that the step began with -----------------------------------------


def token_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """r_t = exp(logprobs - old_logprobs): PPO's (arXiv 1707.06347, section 3)."""
    return torch.exp(logprobs - old_logprobs)


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, segments: Segments) -> Tensor:
    """GSPO's ratio, one for all tokens of a completion: s = exp(mean over its tokens of
    (logprobs - old_logprobs)) (arXiv 2507.18071, eq. 7). The gradient goes through every token's share."""
    return segments.spread(torch.exp(segments.mean(logprobs - old_logprobs)))


# ---- the policy's loss -----------------------------------------------------------------------------------


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """-min(min(r, delta) A, clip(r, 1 - low, 1 + high) A), delta = `dual_clip` or infinity.

    PPO (arXiv 1707.06347, eq. 7) with GRPO's group advantage (arXiv 2402.03300, eq. 3); two bounds instead
    of one are DAPO's (arXiv 2503.14476, eq. 10). delta limits what a negative advantage can do to a token
    that has become far likelier: dual-clip PPO (arXiv 1912.09729, eq. 5), as INTELLECT-2 (arXiv 2505.07291)
    and TRL have it.
    """
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    bounded = ratio if dual_clip is None else ratio.clamp(max=dual_clip)
    return -torch.minimum(bounded * advantages, clipped * advantages)


def is_clipped(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """True for each token whose gradient `clipped_surrogate` cuts off: r moved past the bound A pushes
    towards, or past the dual bound."""
    too_low = (ratio < 1 - clip_low) & (advantages < 0)
    too_high = (ratio > 1 + clip_high) & (advantages > 0)
    if dual_clip is None:
        return too_low | too_high
    return too_low | too_high | ((ratio > dual_clip) & (advantages < 0))


def cispo_surrogate(logprobs: Tensor, ratio: Tensor, advantages: Tensor, clip_high: float) -> Tensor:
    """CISPO: -sg(min(r, 1 + high)) A logprobs: the ratio is a capped weight, and no token loses its gradient
    (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5, where the lower bound is left out, too). TRL's `epsilon_high`
    is the cap itself, 1 + high here."""
    return -ratio.clamp(max=1 + clip_high).detach() * advantages * logprobs


# ---- distance from the reference -------------------------------------------------------------------------


def kl_k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """logprobs - reference: unbiased for KL(policy || reference), of either sign (Schulman,
    http://joschu.net/blog/kl-approx.html). Its own gradient averages to zero: weigh it by the ratio."""
    return logprobs - reference_logprobs


def kl_k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """(logprobs - reference)^2 / 2: biased, of little variance (Schulman, as above); on-policy its gradient
    is the KL's own (arXiv 2510.01555)."""
    return (logprobs - reference_logprobs).square() / 2


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """KL(policy || reference) estimated per token: exp(d) - d - 1 with d = reference - policy.

    Never negative and unbiased for tokens sampled from the policy: Schulman's third estimator
    (http://joschu.net/blog/kl-approx.html), as in GRPO (arXiv 2402.03300, eq. 4).
    """
    difference = reference_logprobs - logprobs
    return torch.exp(difference) - difference - 1


KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


# ---- from tokens to one number: the micro-batch's part, summed over micro-batches and ranks --------------


def token_mean(token_losses: Tensor, total_completion_tokens: int) -> Tensor:
    """`dapo`, `cispo`: this micro-batch's sum over the completion tokens of the WHOLE minibatch.

    The total counts every rank and micro-batch, so each token weighs the same however the batch was
    split, and a long answer is not made cheap by its length (DAPO, arXiv 2503.14476, eq. 12).
    """
    return token_losses.sum() / total_completion_tokens


def sequence_mean(token_losses: Tensor, segments: Segments, total_sequences: int) -> Tensor:
    """`grpo`, `gspo`: the mean over completions of each one's mean (GRPO, arXiv 2402.03300, eq. 3; GSPO,
    arXiv 2507.18071, eq. 5). `total_sequences` counts those of every rank and micro-batch."""
    return segments.mean(token_losses).sum() / total_sequences


def constant_length(token_losses: Tensor, total_sequences: int, length: int) -> Tensor:
    """`dr_grpo`: the sum over all tokens, divided by completions times a constant instead of their lengths
    (Dr. GRPO, arXiv 2503.20783; the constant is their code's and TRL's)."""
    return token_losses.sum() / (total_sequences * length)
