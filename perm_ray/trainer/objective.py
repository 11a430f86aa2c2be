"""The objective of one micro-batch: the terms of `loss.py` and `mismatch.py`, as configured, to one number.

`learner.py` calls it for every micro-batch and adds up what it reports. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from perm_ray.config.training import ObjectiveConfig
from perm_ray.trainer import losses as terms
from perm_ray.trainer.batching import Totals
from perm_ray.trainer.mismatch import Mismatch, mismatch
from perm_ray.trainer.segments import Segments
from perm_ray.trainer.step_metrics import StepSums


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What the objective needs of each completion token, [C] and float32.

    `old_logprobs` are the policy's when the step began, without gradient; `reference_logprobs` is None
    when the KL coefficient is 0. `entropy` has a gradient when the bonus is wanted.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    sampler_logprobs: Tensor
    reference_logprobs: Tensor | None
    entropy: Tensor
    advantages: Tensor
    segments: Segments


def objective(tokens: TokenBatch, totals: Totals, config: ObjectiveConfig) -> tuple[Tensor, StepSums]:
    """This micro-batch's part of the loss of its minibatch, and its sums for the metrics.

        aggregate( weight * policy loss + kl_coef * KL )  -  entropy_coef * mean entropy of a token

    The parts of all micro-batches, on all ranks, add up to the loss. As in TRL the mismatch's weight does
    not touch the KL, and the entropy bonus is a mean over tokens whatever the loss. `StepSums.loss` is this
    part, too; the other sums are over tokens.
    """
    gap = _gap(tokens, config)
    ratio = _ratio(tokens, config)
    losses, clipped = _policy_losses(tokens, ratio, config)
    if config.mismatch != "none":
        losses = losses * gap.weight
    kl = torch.zeros_like(tokens.old_logprobs)
    if tokens.reference_logprobs is not None:
        kl = terms.kl_k3(tokens.logprobs, tokens.reference_logprobs)  # reported, whatever is minimised
        losses = losses + config.kl_coef * _kl_in_the_loss(tokens, tokens.reference_logprobs, ratio, config)
    loss = _aggregate(losses, tokens.segments, totals, config)
    value = _aggregate(losses.detach().double(), tokens.segments, totals, config)
    if config.entropy_coef > 0:
        loss = loss - config.entropy_coef * terms.token_mean(tokens.entropy, totals.tokens)
        entropy = tokens.entropy.detach().double()
        value = value - config.entropy_coef * terms.token_mean(entropy, totals.tokens)
    difference = (tokens.sampler_logprobs - tokens.old_logprobs).abs()
    summed = (kl, tokens.entropy, clipped, difference, gap.ratio, gap.kl, gap.clipped)
    sums = [seen.detach().double().sum() for seen in summed]
    most = [difference.double().max(), gap.ratio.double().max()]
    values = torch.stack([value, *sums, *most]).tolist()
    return loss, StepSums(len(losses), *values)


def _gap(tokens: TokenBatch, config: ObjectiveConfig) -> Mismatch:
    return mismatch(
        tokens.old_logprobs,
        tokens.sampler_logprobs,
        tokens.segments,
        config.mismatch,
        config.mismatch_low,
        config.mismatch_high,
    )


def _ratio(tokens: TokenBatch, config: ObjectiveConfig) -> Tensor:
    if config.loss == "gspo":
        return terms.sequence_ratio(tokens.logprobs, tokens.old_logprobs, tokens.segments)
    return terms.token_ratio(tokens.logprobs, tokens.old_logprobs)


def _policy_losses(tokens: TokenBatch, ratio: Tensor, config: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    """Each token's policy loss, and whether its ratio was clipped."""
    if config.loss == "cispo":
        losses = terms.cispo_surrogate(tokens.logprobs, ratio, tokens.advantages, config.clip_high)
        return losses, ratio > 1 + config.clip_high
    clip = (ratio, tokens.advantages, config.clip_low, config.clip_high, config.dual_clip)
    return terms.clipped_surrogate(*clip), terms.is_clipped(*clip)


def _kl_in_the_loss(
    tokens: TokenBatch, reference_logprobs: Tensor, ratio: Tensor, config: ObjectiveConfig
) -> Tensor:
    """The estimator that was chosen. Weighed by the ratio, gradient included, it is right off-policy
    (DeepSeek-V3.2, arXiv 2512.02556; TRL's `use_bias_correction_kl`)."""
    kl = terms.KL_ESTIMATORS[config.kl_estimator](tokens.logprobs, reference_logprobs)
    return kl * ratio if config.kl_ratio_weighted else kl


def _aggregate(losses: Tensor, segments: Segments, totals: Totals, config: ObjectiveConfig) -> Tensor:
    if config.loss in ("grpo", "gspo"):
        return terms.sequence_mean(losses, segments, totals.sequences)
    if config.loss == "dr_grpo":
        return terms.constant_length(losses, totals.sequences, config.constant_length)
    return terms.token_mean(losses, totals.tokens)
