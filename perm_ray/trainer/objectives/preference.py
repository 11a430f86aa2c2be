"""The preference objective: Bradley-Terry on a judge's expected scores.

A pair is a better and a worse text that one judge was asked about. The judge's score of each is the
expectation over the scale's values given a valid answer, as scoring mode `expected` computes it, and

    loss = -log sigmoid(score of the better - score of the worse)

(R. Bradley and M. Terry, Biometrika 39, 1952; as a reward model's loss: arXiv 2203.02155, eq. 1). The texts
of a pair need not lie in one micro-batch, nor on one rank: all scores are computed first, without gradient,
and then each text is trained with the derivative of the loss by its own score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from perm_ray.trainer.batching import MicroBatch, RankBatch, Totals
from perm_ray.trainer.objectives.supervised import with_soft_targets
from perm_ray.trainer.packing import pack
from perm_ray.trainer.step_metrics import StepSums


class PreferenceObjective:
    """Forward pass and loss of micro-batches of pairs.

    Each sequence has one trained position, whose candidates are the tokens of the scale's values, each with
    its value in the place of a probability, and the number of its pair (`TrainSequence.pair`).

    Args:
        engine: The DeepSpeed engine around the model.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._scores: dict[int, float] = {}

    @torch.no_grad()
    def begin_step(self, minibatches: Sequence[RankBatch]) -> None:
        """Compute the score of every text of the step, on all ranks."""
        own: dict[int, float] = {}
        for minibatch in minibatches:
            for micro_batch in minibatch.micro_batches:
                scores = self._expected(micro_batch).tolist()  # one, of no pair, where nothing is computed
                own |= dict(zip(_pairs(micro_batch), scores, strict=False))
        gathered: list[dict[int, float]] = [own]
        if dist.is_initialized():
            gathered = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(gathered, own)
        self._scores = {pair: score for scores in gathered for pair, score in scores.items()}

    def __call__(self, micro_batch: MicroBatch, totals: Totals) -> tuple[Tensor, StepSums]:
        """Compute this micro-batch's part of the mean loss of a pair, in nats."""
        expected, pairs = self._expected(micro_batch), _pairs(micro_batch)
        num_pairs = totals.sequences / 2
        # d loss / d score of the better = -(1 - sigmoid(difference)), of the worse the opposite.
        slopes = [math.copysign(1 / (1 + math.exp(self._difference(pair))), -pair) for pair in pairs]
        weights = torch.tensor(slopes or [0.0], dtype=torch.float32, device=expected.device)
        value = sum(math.log1p(math.exp(-self._difference(pair))) for pair in pairs if pair > 0) / num_pairs
        return (weights * expected).sum() / num_pairs, StepSums(tokens=float(len(pairs)), loss=value)

    def _difference(self, pair: int) -> float:
        """Return how much better the better text of a pair is scored."""
        return self._scores[abs(pair)] - self._scores[-abs(pair)]

    def _expected(self, micro_batch: MicroBatch) -> Tensor:
        """Return the expected score of each sequence, [S]."""
        batch, values = with_soft_targets(pack(micro_batch, self._engine.device), micro_batch)
        logprobs, _ = self._engine(batch)
        counts = [len(s.soft_targets[0]) for unit in micro_batch for s in unit] or [len(values)]
        parts = zip(logprobs.split(counts), values.split(counts), strict=True)
        return torch.stack([(own.softmax(0) * value).sum() for own, value in parts])


def _pairs(micro_batch: MicroBatch) -> list[int]:
    return [sequence.pair for unit in micro_batch for sequence in unit]
