"""The policy objective: GRPO and its relatives on sampled sequences (`losses.py` has the table of losses).

`PolicyObjective` is what `learner.py` calls; `policy_loss` is the pure part, from tensors to one number.

Log-probabilities of policy and reference are those at the sampling temperature, softmax(logits /
temperature), as in verl, OpenRLHF and TRL: otherwise the gradient would be that of another distribution than
the one that was sampled. `top_p` below 1 is not applied here, as in those three: the trainer's probabilities
keep the whole vocabulary. Renormalised over the nucleus, a token that leaves the nucleus after an update
would have probability 0 and an infinite ratio, and the nucleus itself has no gradient. The sampler's
log-probabilities enter only the mismatch correction. At temperature 1 they are raw, untruncated ones; at
another temperature vLLM gives those of the truncated distribution, so with top_p = p the mismatch shows up to
-ln(p) nats a token, which is no disagreement of the two engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from perm_ray.config.training import ObjectiveConfig
from perm_ray.trainer.batching import MicroBatch, RankBatch, Totals
from perm_ray.trainer.losses import KL_ESTIMATORS, LOSSES, kl_k3, token_mean
from perm_ray.trainer.mismatch import mismatch
from perm_ray.trainer.packing import PackedBatch, pack
from perm_ray.trainer.segments import Segments
from perm_ray.trainer.step_metrics import StepSums


class Reference(Protocol):
    """A frozen policy: log-probability of each trained token [C], without gradient."""

    def __call__(self, batch: PackedBatch) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class _OldLogprobs:
    """Log-probs that a micro-batch's are compared with: the policy's when the step began, and the
    reference's, if there is one."""

    policy: Tensor
    reference: Tensor | None


class PolicyObjective:
    """Forward passes and loss of the policy's micro-batches.

    Args:
        engine: The DeepSpeed engine around the policy.
        config: The loss and its coefficients.
        reference: The frozen policy of the KL penalty; None without one.
        temperature: At which the sequences were sampled.
    """

    def __init__(
        self, engine: Any, config: ObjectiveConfig, reference: Reference | None, temperature: float
    ) -> None:
        self._engine = engine
        self._config = config
        self._reference = reference
        self._temperature = temperature
        self._old: dict[MicroBatch, _OldLogprobs] = {}

    @torch.no_grad()
    def begin_step(self, minibatches: Sequence[RankBatch]) -> None:
        """Compute the old log-probs of all minibatches but the first, which is trained before the policy
        moves."""
        self._old = {}
        for minibatch in minibatches[1:]:
            for micro_batch in minibatch.micro_batches:
                batch = self._pack(micro_batch)
                logprobs, _ = self._engine(batch)
                self._old[micro_batch] = _OldLogprobs(logprobs, self._reference_logprobs(batch))

    def __call__(self, micro_batch: MicroBatch, totals: Totals) -> tuple[Tensor, StepSums]:
        """Compute this micro-batch's part of its minibatch's loss, and its sums for the metrics."""
        batch = self._pack(micro_batch)
        bonus = self._config.entropy_coef > 0
        logprobs, entropy = self._engine(batch, with_entropy=True, entropy_gradient=bonus)
        if micro_batch not in self._old:  # so that the first ratio is exactly 1, and only its gradient counts
            self._old[micro_batch] = _OldLogprobs(logprobs.detach(), self._reference_logprobs(batch))
        old = self._old[micro_batch]
        tokens = TokenBatch(
            logprobs=logprobs,
            old_logprobs=old.policy,
            sampler_logprobs=batch.sampler_logprobs,
            reference_logprobs=old.reference,
            entropy=entropy,
            advantages=batch.advantages,
            segments=batch.segments,
        )
        return policy_loss(tokens, totals, self._config)

    def _pack(self, micro_batch: MicroBatch) -> PackedBatch:
        return pack(micro_batch, self._engine.device, self._temperature)

    def _reference_logprobs(self, batch: PackedBatch) -> Tensor | None:
        return None if self._reference is None else self._reference(batch)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Inputs of the loss for each trained token, [C] and float32.

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


def policy_loss(tokens: TokenBatch, totals: Totals, config: ObjectiveConfig) -> tuple[Tensor, StepSums]:
    """Compute this micro-batch's part of the loss of its minibatch, and its sums for the metrics.

        aggregate( weight * policy loss + kl_coef * KL )  -  entropy_coef * mean entropy of a token

    The parts of all micro-batches, on all ranks, add up to the loss. As in TRL the mismatch's weight does
    not touch the KL, and the entropy bonus is a mean over tokens whatever the loss. The KL estimator weighed
    by the ratio, gradient included, is right off-policy (DeepSeek-V3.2, arXiv 2512.02556; TRL's
    `use_bias_correction_kl`). `StepSums.loss` is this part, too; the other sums are over tokens.
    """
    loss_kind, segments = LOSSES[config.loss], tokens.segments
    gap = mismatch(
        tokens.old_logprobs,
        tokens.sampler_logprobs,
        segments,
        config.mismatch,
        config.mismatch_low,
        config.mismatch_high,
    )
    ratio = loss_kind.ratio(tokens.logprobs, tokens.old_logprobs, segments)
    losses, clipped = loss_kind.surrogate(tokens.logprobs, ratio, tokens.advantages, config)
    if config.mismatch != "none":
        losses = losses * gap.weight
    kl = torch.zeros_like(tokens.old_logprobs)
    if tokens.reference_logprobs is not None:
        kl = kl_k3(tokens.logprobs, tokens.reference_logprobs)  # reported, whatever is minimised
        minimised = KL_ESTIMATORS[config.kl_estimator](tokens.logprobs, tokens.reference_logprobs)
        losses = losses + config.kl_coef * (minimised * ratio if config.kl_ratio_weighted else minimised)
    loss = loss_kind.aggregate(losses, segments, totals, config)
    value = loss_kind.aggregate(losses.detach().double(), segments, totals, config)
    if config.entropy_coef > 0:
        loss = loss - config.entropy_coef * token_mean(tokens.entropy, segments, totals, config)
        entropy = tokens.entropy.detach().double()
        value = value - config.entropy_coef * token_mean(entropy, segments, totals, config)
    difference = (tokens.sampler_logprobs - tokens.old_logprobs).abs()
    summed = (kl, tokens.entropy, clipped, difference, gap.ratio, gap.kl, gap.clipped)
    sums = [term.detach().double().sum() for term in summed]
    largest = [difference.double().max(), gap.ratio.double().max()]
    values = torch.stack([value, *sums, *largest]).tolist()
    return loss, StepSums(len(losses), *values)
