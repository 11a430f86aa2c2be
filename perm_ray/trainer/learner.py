"""One rank's learning: its share of a step, forward and backward, then the common update.

`actor.py` is the remote shell around this class. Every method is a collective: all ranks call it
with the same step and as many micro-batches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from perm_ray.config.schema import TrainerConfig
from perm_ray.errors import RunError
from perm_ray.trainer import engine as ds
from perm_ray.trainer.batching import TrainSequence
from perm_ray.trainer.loss import dapo, is_clipped, kl_k3, policy_loss
from perm_ray.trainer.metrics import StepSums
from perm_ray.trainer.model import PackedBatch, check_packing, load_policy, pack
from perm_ray.trainer.state import RankState
from perm_ray.trainer.weights import PolicyWeights, export_model


class Learner:
    """The policy in its DeepSpeed engine, and the frozen reference if KL is wanted."""

    def __init__(self, config: TrainerConfig, model_dir: Path, rank: int, total_steps: int) -> None:
        self._config = config
        self._model_dir = model_dir
        self._rank = rank
        dtype = getattr(torch, config.dtype)
        self._policy = load_policy(model_dir, dtype)
        if rank == 0:
            check_packing(self._policy)
        self._engine = ds.build_engine(config, self._policy, total_steps)
        self.state = RankState(self._engine, rank, config.num_ranks)
        self._reference = None
        if config.kl_coef > 0:
            self._reference = (
                load_policy(model_dir, dtype).requires_grad_(False).eval().to(self._engine.device)
            )

    def step(
        self,
        step: int,
        micro_batches: Sequence[Sequence[TrainSequence]],
        total_completion_tokens: int,
        stop_requested: Callable[[], bool],
    ) -> StepSums:
        """One optimizer update from all ranks' micro-batches, or none if any rank was asked to stop.

        Raises `RunError` on every rank, before the update, when a loss or the gradient is not finite.
        """
        lr = self._engine.get_lr()[0]
        sums = StepSums()
        self._engine.train()
        for index, sequences in enumerate(micro_batches):
            if self._must_stop(step, stop_requested(), sums.loss):
                return self._give_up(sums)
            self._engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            loss, part = self._forward(pack(sequences, self._engine.device), total_completion_tokens)
            self._engine.backward(loss)
            sums += part
        if self._must_stop(step, stop_requested(), sums.loss):
            return self._give_up(sums)
        return dataclasses.replace(sums, grad_norm=self._update(step), lr=lr)

    def weights(self) -> PolicyWeights:
        return PolicyWeights(self._policy)

    def export(self, path: Path) -> None:
        export_model(self._policy, self._model_dir, path, self._rank)
        dist.barrier()  # when the call returns, the folder is there

    def _forward(self, batch: PackedBatch, total_completion_tokens: int) -> tuple[Tensor, StepSums]:
        """This micro-batch's part of the step's loss, ready for backward, and its sums."""
        config = self._config
        logprobs, entropy = self._engine(batch, with_entropy=True)
        # There is one update per step, on what the current policy sampled: the ratio is exactly 1 and
        # only its gradient counts. With several updates the first one's log-probs would be kept.
        old_logprobs = logprobs.detach()
        clip = (logprobs, old_logprobs, batch.advantages, config.clip_low, config.clip_high)
        losses = policy_loss(*clip)
        kl = torch.zeros_like(old_logprobs)
        if self._reference is not None:
            with torch.no_grad():
                reference_logprobs, _ = self._reference(batch)
            kl = kl_k3(logprobs, reference_logprobs)
            losses = losses + config.kl_coef * kl
        # DeepSpeed averages gradients over the ranks; the objective is a sum over them.
        loss = dapo(losses, total_completion_tokens) * config.num_ranks * batch.weight
        difference = (batch.sampler_logprobs - old_logprobs).abs()
        seen = (losses, kl, entropy, is_clipped(*clip), difference)
        values = torch.stack([value.detach().double().sum() for value in seen] + [difference.double().max()])
        means = (values * batch.weight).tolist()
        return loss, StepSums(batch.weight * len(losses), *means)

    def _must_stop(self, step: int, requested: bool, loss: float) -> bool:
        """Whether any rank was asked to stop. Asked of all ranks together, so that none goes on alone."""
        votes = torch.tensor([float(requested), float(not math.isfinite(loss))], device=self._engine.device)
        if self._config.num_ranks > 1:
            dist.all_reduce(votes, dist.ReduceOp.MAX)
        stop, not_finite = votes.bool().tolist()
        if not_finite:
            raise RunError(
                f"The loss of step {step} is not a finite number (sum on this rank: {loss}), so the policy "
                "was not updated. Look at the step's rewards and advantages, or lower trainer.lr."
            )
        return stop

    def _give_up(self, sums: StepSums) -> StepSums:
        """Drop the gradients so far. The parameters are still those of the last finished step."""
        ds.discard_gradients(self._engine)
        return dataclasses.replace(sums, interrupted=True)

    def _update(self, step: int) -> float:
        """Step the optimizer and return the gradient's norm before clipping."""
        grad_norm = ds.update(self._engine)
        if not math.isfinite(grad_norm):
            raise RunError(
                f"The gradient of step {step} is not finite, so the policy was not updated. Look at the "
                "step's rewards and advantages, or lower trainer.lr."
            )
        return grad_norm
