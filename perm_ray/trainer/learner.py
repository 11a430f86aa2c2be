"""One rank's learning: its share of a step, forward and backward, then the common update.

`actor.py` is the remote shell around this class. Every method is a collective: all ranks call it
with the same step and as many micro-batches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from perm_ray.config.training import TrainerConfig
from perm_ray.errors import NotFiniteError
from perm_ray.models.adapter import adapter_folder
from perm_ray.trainer import deepspeed as ds
from perm_ray.trainer.batching import MicroBatch, RankBatch, Totals
from perm_ray.trainer.ema import WeightAverage
from perm_ray.trainer.lora import add_adapter
from perm_ray.trainer.objective import TokenBatch, objective
from perm_ray.trainer.packing import PackedBatch, check_packing, load_policy, pack
from perm_ray.trainer.reference import FrozenCopy, WithoutAdapter
from perm_ray.trainer.state import RankState
from perm_ray.trainer.step_metrics import StepSums
from perm_ray.trainer.weights import AdapterWeights, PolicyWeights, export_adapter, export_model


@dataclass(frozen=True, slots=True)
class _Fixed:
    """What a step compares a micro-batch's log-probs with: the policy's when the step began, and the
    reference's, if there is one."""

    old_logprobs: Tensor
    reference_logprobs: Tensor | None


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
        if config.lora.rank > 0:
            add_adapter(self._policy, config.lora, rank)
        self._engine = ds.build_engine(config, self._policy, total_steps * config.objective.updates)
        self._average = WeightAverage(self._policy, config.ema_decay, rank) if config.ema_decay > 0 else None
        self.state = RankState(self._engine, rank, config.num_ranks, self._average)
        self._reference = None
        if config.objective.kl_coef > 0 and config.lora.rank > 0:
            self._reference = WithoutAdapter(self._engine)
        elif config.objective.kl_coef > 0:
            self._reference = FrozenCopy(model_dir, dtype, self._engine.device, config.offload_reference)

    def step(
        self, step: int, minibatches: Sequence[RankBatch], stop_requested: Callable[[], bool]
    ) -> StepSums:
        """One optimizer update from each minibatch of all ranks, in every epoch; or none at all if any rank
        was asked to stop before the first.

        Raises `NotFiniteError` on every rank, before the update, when a loss or the gradient is not finite.
        """
        schedule = [minibatch for _ in range(self._config.objective.epochs) for minibatch in minibatches]
        # The first minibatch is not looked at: it is trained before the policy moves.
        fixed = self._log_probs_at_the_start(minibatches[1:])
        sums = StepSums()
        self._engine.train()
        for update, minibatch in enumerate(schedule):
            last = len(minibatch.micro_batches) - 1
            for index, micro_batch in enumerate(minibatch.micro_batches):
                if self._must_stop(step, stop_requested(), sums.loss) and update == 0:
                    return self._give_up(sums)
                self._engine.set_gradient_accumulation_boundary(index == last)
                loss, part = self._forward(micro_batch, minibatch.totals, fixed)
                self._engine.backward(loss)
                sums += part.weighted(1.0 if micro_batch else 0.0, 1 / len(schedule))
            if self._must_stop(step, stop_requested(), sums.loss) and update == 0:
                return self._give_up(sums)
            lr = self._engine.get_lr()[0]
            sums += StepSums(grad_norm=self._update(step), lr=lr)
        return sums

    def weights(self) -> PolicyWeights:
        return PolicyWeights(self._policy)

    def adapter_weights(self) -> AdapterWeights:
        return AdapterWeights(self._policy)

    def export(self, path: Path) -> None:
        """Write the policy, its adapter merged; and the adapter alone (`adapter_folder`). Of a
        policy whose weights are averaged, it is the average."""
        average = self._average.values if self._average is not None else None
        export_model(self._policy, PolicyWeights(self._policy, average), self._model_dir, path, self._rank)
        if self._config.lora.rank > 0:
            weights = AdapterWeights(self._policy, average)
            export_adapter(weights, self._config.lora, self._model_dir, adapter_folder(path), self._rank)
        dist.barrier()  # when the call returns, the folder is there

    def _forward(
        self, micro_batch: MicroBatch, totals: Totals, fixed: dict[MicroBatch, _Fixed]
    ) -> tuple[Tensor, StepSums]:
        """This micro-batch's part of its minibatch's loss, ready for backward, and its sums.

        A micro-batch that is not in `fixed` is put there: the policy is still as it was.
        """
        config = self._config
        batch = pack(micro_batch, self._engine.device)
        bonus = config.objective.entropy_coef > 0
        logprobs, entropy = self._engine(batch, with_entropy=True, entropy_gradient=bonus)
        if micro_batch not in fixed:  # so that the first ratio is exactly 1, and only its gradient counts
            fixed[micro_batch] = _Fixed(logprobs.detach(), self._reference_logprobs(batch))
        compared = fixed[micro_batch]
        tokens = TokenBatch(
            logprobs=logprobs,
            old_logprobs=compared.old_logprobs,
            sampler_logprobs=batch.sampler_logprobs,
            reference_logprobs=compared.reference_logprobs,
            entropy=entropy,
            advantages=batch.advantages,
            segments=batch.segments,
        )
        loss, sums = objective(tokens, totals, config.objective)
        # DeepSpeed averages gradients over the ranks; the objective is a sum over them.
        return loss * config.num_ranks * batch.weight, sums

    @torch.no_grad()
    def _log_probs_at_the_start(self, minibatches: Sequence[RankBatch]) -> dict[MicroBatch, _Fixed]:
        """The log-probs of minibatches whose turn comes after an update."""
        self._engine.eval()
        fixed = {}
        for minibatch in minibatches:
            for micro_batch in minibatch.micro_batches:
                batch = pack(micro_batch, self._engine.device)
                logprobs, _ = self._engine(batch)
                fixed[micro_batch] = _Fixed(logprobs, self._reference_logprobs(batch))
        return fixed

    def _reference_logprobs(self, batch: PackedBatch) -> Tensor | None:
        if self._reference is None:
            return None
        return self._reference(batch)

    def _must_stop(self, step: int, requested: bool, loss: float) -> bool:
        """Whether any rank was asked to stop. Asked of all ranks together, so that none goes on alone."""
        votes = torch.tensor([float(requested), float(not math.isfinite(loss))], device=self._engine.device)
        if self._config.num_ranks > 1:
            dist.all_reduce(votes, dist.ReduceOp.MAX)
        stop, not_finite = votes.bool().tolist()
        if not_finite:
            raise NotFiniteError(
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
            raise NotFiniteError(
                f"The gradient of step {step} is not finite, so the policy was not updated. Look at the "
                "step's rewards and advantages, or lower trainer.lr."
            )
        if self._average is not None:
            self._average.update()
        return grad_norm
