"""Measure how far sampler and trainer disagree about the same tokens, and correct for it. Pure.

vLLM and the trainer compute the same policy with other kernels, and in an asynchronous run with other
weights; the samples are then not quite the policy's own. Truncated importance sampling weighs them by how
much likelier the trainer finds them, up to a bound, and masking leaves out what is beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from perm_ray.trainer.segments import Segments

LARGEST = 20.0  # nats: a larger log-ratio would overflow, and is far outside any bound


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Per completion token: the `ratio` trainer over sampler, the `weight` its policy loss is multiplied by,
    whether that was truncated or masked (`clipped`), and an estimate of KL(sampler || trainer) in nats."""

    ratio: Tensor
    weight: Tensor
    clipped: Tensor
    kl: Tensor


def mismatch(
    old_logprobs: Tensor, sampler_logprobs: Tensor, segments: Segments, mode: str, low: float, high: float
) -> Mismatch:
    """Return the ratio rho and its weight, from d = old_logprobs - sampler_logprobs, which have no gradient
    here.

        token_*:     rho_t = exp(d_t)              sequence_*:  rho = exp(sum of d over the completion)
        *_truncate:  clip(rho, low, high)          *_mask:      rho where low <= rho <= high, else 0
        none:        1, and rho_t is only looked at

    Truncated importance sampling is Yao et al. 2025 (https://fengyao.notion.site/off-policy-rl) after
    arXiv 1802.01561, eq. 1; masking is IcePop's (arXiv 2510.18855). As in TRL 1.16. The KL is the
    k3 estimator for tokens of the sampler: rho_t - 1 - d_t.
    """
    level, _, method = mode.partition("_")
    difference = (old_logprobs - sampler_logprobs).clamp(-LARGEST, LARGEST)
    token_ratios = torch.exp(difference)
    kl = token_ratios - 1 - difference
    ratio = token_ratios
    if level == "sequence":
        total = segments.total(old_logprobs - sampler_logprobs).clamp(-LARGEST, LARGEST)
        ratio = segments.spread(torch.exp(total))
    outside = (ratio < low) | (ratio > high)
    if mode == "none":
        weight, outside = torch.ones_like(ratio), torch.zeros_like(outside)
    elif method == "truncate":
        weight = ratio.clamp(low, high)
    else:
        weight = ratio.masked_fill(outside, 0.0)
    return Mismatch(ratio, weight, outside, kl)
