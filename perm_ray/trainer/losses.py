"""Policy losses as data: the table `LOSSES` at the end names each one's ratio, surrogate and aggregation.

A new loss is a function and a line in that table. `objectives/policy.py` joins the terms. All are pure
functions of one-dimensional float32 tensors with an entry per trained token of a packed micro-batch.
Log-probabilities are in nats; an advantage has no unit and is repeated for its sequence's tokens. A masked
rollout is not among the tokens, and does not count in any total.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from perm_ray.config.training import ObjectiveConfig
from perm_ray.trainer.batching import Totals
from perm_ray.trainer.segments import Segments

# ---- the ratio of the policy to the one that the step began with -----------------------------------------


def token_ratio(logprobs: Tensor, old_logprobs: Tensor, segments: Segments) -> Tensor:
    """r_t = exp(logprobs - old_logprobs): PPO's (arXiv 1707.06347, section 3)."""
    del segments
    return torch.exp(logprobs - old_logprobs)


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, segments: Segments) -> Tensor:
    """s = exp(mean over a sequence's tokens of (logprobs - old_logprobs)), one for all of them: GSPO's
    (arXiv 2507.18071, eq. 7). The gradient goes through every token's share."""
    return segments.spread(torch.exp(segments.mean(logprobs - old_logprobs)))


# ---- the policy's loss of each token, and whether its ratio was clipped ----------------------------------


def clipped_surrogate(
    logprobs: Tensor, ratio: Tensor, advantages: Tensor, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """-min(min(r, delta) A, clip(r, 1 - low, 1 + high) A), delta = `dual_clip` or infinity.

    PPO (arXiv 1707.06347, eq. 7) with GRPO's group advantage (arXiv 2402.03300, eq. 3); two bounds instead
    of one are DAPO's (arXiv 2503.14476, eq. 10). delta limits what a negative advantage can do to a token
    that has become far likelier: dual-clip PPO (arXiv 1912.09729, eq. 5), as INTELLECT-2 (arXiv 2505.07291)
    and TRL have it. A token is clipped when its gradient is cut off: r moved past the bound that A pushes
    towards, or past the dual bound.
    """
    del logprobs
    low, high, dual = 1 - config.clip_low, 1 + config.clip_high, config.dual_clip
    bounded = ratio if dual is None else ratio.clamp(max=dual)
    losses = -torch.minimum(bounded * advantages, ratio.clamp(low, high) * advantages)
    clipped = ((ratio < low) & (advantages < 0)) | ((ratio > high) & (advantages > 0))
    if dual is not None:
        clipped = clipped | ((ratio > dual) & (advantages < 0))
    return losses, clipped


def capped_surrogate(
    logprobs: Tensor, ratio: Tensor, advantages: Tensor, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """CISPO: -sg(min(r, 1 + high)) A logprobs: the ratio is a capped weight, and no token loses its gradient
    (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5, where the lower bound is left out, too). TRL's `epsilon_high`
    is the cap itself, 1 + high here."""
    cap = 1 + config.clip_high
    return -ratio.clamp(max=cap).detach() * advantages * logprobs, ratio > cap


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


def token_mean(losses: Tensor, segments: Segments, totals: Totals, config: ObjectiveConfig) -> Tensor:
    """Divide this micro-batch's sum by the trained tokens of the WHOLE minibatch.

    The total counts every rank and micro-batch, so each token weighs the same however the batch was
    split, and a long answer is not made cheap by its length (DAPO, arXiv 2503.14476, eq. 12).
    """
    del segments, config
    return losses.sum() / totals.tokens


def sequence_mean(losses: Tensor, segments: Segments, totals: Totals, config: ObjectiveConfig) -> Tensor:
    """Average each sequence's mean over all sequences of the minibatch (GRPO, arXiv 2402.03300, eq. 3; GSPO,
    arXiv 2507.18071, eq. 5)."""
    del config
    return segments.mean(losses).sum() / totals.sequences


def constant_length(losses: Tensor, segments: Segments, totals: Totals, config: ObjectiveConfig) -> Tensor:
    """Divide the sum over all tokens by sequences times a constant instead of their lengths (Dr. GRPO,
    arXiv 2503.20783; the constant is their code's and TRL's)."""
    del segments
    return losses.sum() / (totals.sequences * config.constant_length)


# ---- the table -------------------------------------------------------------------------------------------

Ratio: TypeAlias = Callable[[Tensor, Tensor, Segments], Tensor]
Surrogate: TypeAlias = Callable[[Tensor, Tensor, Tensor, ObjectiveConfig], tuple[Tensor, Tensor]]
Aggregate: TypeAlias = Callable[[Tensor, Segments, Totals, ObjectiveConfig], Tensor]


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A value of `trainer.objective.loss`: its ratio, its surrogate and how tokens become one number."""

    ratio: Ratio
    surrogate: Surrogate
    aggregate: Aggregate


LOSSES = {
    "dapo": PolicyLoss(token_ratio, clipped_surrogate, token_mean),
    "grpo": PolicyLoss(token_ratio, clipped_surrogate, sequence_mean),
    "dr_grpo": PolicyLoss(token_ratio, clipped_surrogate, constant_length),
    "gspo": PolicyLoss(sequence_ratio, clipped_surrogate, sequence_mean),
    "cispo": PolicyLoss(token_ratio, capped_surrogate, token_mean),
}
