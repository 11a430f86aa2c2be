"""The supervised objective: cross-entropy on trained tokens, with hard or soft targets.

Demonstrations have the trained tokens themselves as targets. Soft targets are a distribution over token ids
at each trained position, such as raters' labels over the digits of a scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from perm_ray.trainer.batching import STAND_IN, MicroBatch, RankBatch, Totals
from perm_ray.trainer.packing import PackedBatch, pack
from perm_ray.trainer.step_metrics import StepSums


class SupervisedObjective:
    """Forward pass and loss of micro-batches of demonstrations.

    Args:
        engine: The DeepSpeed engine around the model.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def begin_step(self, minibatches: Sequence[RankBatch]) -> None:
        """Nothing: no term compares with the model as it was."""

    def __call__(self, micro_batch: MicroBatch, totals: Totals) -> tuple[Tensor, StepSums]:
        """Compute -sum q log p / tokens of the minibatch, with q the targets' probabilities (1 for a hard
        one): the mean negative log-likelihood of a trained token, in nats."""
        batch, weights = with_soft_targets(pack(micro_batch, self._engine.device), micro_batch)
        logprobs, _ = self._engine(batch)
        losses = -weights * logprobs
        value = float(losses.detach().double().sum()) / totals.tokens
        tokens = float(batch.segments.lengths.sum())
        return losses.sum() / totals.tokens, StepSums(tokens=tokens, loss=value)


def with_soft_targets(batch: PackedBatch, micro_batch: MicroBatch) -> tuple[PackedBatch, Tensor]:
    """Repeat each predictor once for every candidate of its target.

    Returns:
        The batch with predictors and targets [K], and the probability of each target [K], float32. Segments,
        advantages and the sampler's log-probs are left as they were.
    """
    sequences = [sequence for unit in micro_batch or ((STAND_IN,),) for sequence in unit]
    candidates: list[Sequence[tuple[int, float]]] = []
    targets = iter(batch.targets.tolist())
    for sequence in sequences:
        own = [((next(targets), 1.0),) for _ in range(sequence.num_trained)]
        candidates += sequence.soft_targets or own
    device = batch.targets.device
    counts = torch.tensor([len(pairs) for pairs in candidates], device=device)
    pairs = [pair for own in candidates for pair in own]
    weights = torch.tensor([probability for _, probability in pairs], dtype=torch.float32, device=device)
    repeated = dataclasses.replace(
        batch,
        predictors=batch.predictors.repeat_interleave(counts),
        targets=torch.tensor([token for token, _ in pairs], device=device),
    )
    return repeated, weights
