"""One rank's learning: its share of a step, forward and backward, then the common update.

`actor.py` is the remote shell around this class. Every method is a collective: all ranks call it
with the same step and as many micro-batches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from perm_ray.config.training import TrainerConfig
from perm_ray.errors import NotFiniteError
from perm_ray.models.adapter import adapter_folder
from perm_ray.trainer import deepspeed as ds
from perm_ray.trainer.batching import MicroBatch, RankBatch, Task, Totals
from perm_ray.trainer.ema import WeightAverage
from perm_ray.trainer.lora import add_adapter
from perm_ray.trainer.objectives.policy import PolicyObjective
from perm_ray.trainer.objectives.preference import PreferenceObjective
from perm_ray.trainer.objectives.supervised import SupervisedObjective
from perm_ray.trainer.packing import check_packing, load_policy
from perm_ray.trainer.reference import FrozenCopy, WithoutAdapter
from perm_ray.trainer.state import RankState
from perm_ray.trainer.step_metrics import StepSums
from perm_ray.trainer.weights import AdapterWeights, PolicyWeights, export_adapter, export_model


class Objective(Protocol):
    """The seam for objectives: forward passes and loss of micro-batches of one kind (`objectives/`)."""

    def begin_step(self, minibatches: Sequence[RankBatch]) -> None:
        """Compute whatever must come from the policy as it was before the step's first update."""

    def __call__(self, micro_batch: MicroBatch, totals: Totals) -> tuple[Tensor, StepSums]:
        """Compute this micro-batch's part of its minibatch's loss, ready for backward, and its sums. An empty
        micro-batch takes part in every forward pass all the same."""
        ...


class Learner:
    """The policy in its DeepSpeed engine, and the objective that it learns by.

    Args:
        config: The section `trainer`.
        model_dir: The folder of the first weights.
        rank: This rank's number.
        total_steps: Steps of the whole run, for the learning rate's schedule.
        temperature: At which the sequences are sampled.
        task: What is learned from, which chooses the objective.
    """

    def __init__(
        self,
        config: TrainerConfig,
        model_dir: Path,
        rank: int,
        total_steps: int,
        temperature: float = 1.0,
        task: Task = "policy",
    ) -> None:
        self._config = config
        self._model_dir = model_dir
        self._rank = rank
        dtype = getattr(torch, config.dtype)
        self._policy = load_policy(model_dir, dtype)
        if rank == 0 and config.zero_stage == 3:  # whole parameters are only here
            check_packing(self._policy)
        if config.lora.rank > 0:
            add_adapter(self._policy, config.lora, rank)
        self._engine = ds.build_engine(config, self._policy, total_steps * config.objective.updates)
        if rank == 0 and config.zero_stage < 3:  # on the device that trains: its attention is other code
            check_packing(self._policy)
        self._average = WeightAverage(self._policy, config.ema_decay, rank) if config.ema_decay > 0 else None
        self.state = RankState(self._engine, rank, config.num_ranks, config.step_timeout_s, self._average)
        self._objective = self._choose_objective(temperature, task)

    def _choose_objective(self, temperature: float, task: Task) -> Objective:
        """Return what is minimised: the policy's loss on samples, or one of the supervised ones."""
        config = self._config
        if task == "supervised":
            return SupervisedObjective(self._engine)
        if task == "preference":
            return PreferenceObjective(self._engine)
        reference = None
        if config.objective.kl_coef > 0 and config.lora.rank > 0:
            reference = WithoutAdapter(self._engine)
        elif config.objective.kl_coef > 0:
            dtype = getattr(torch, config.dtype)
            reference = FrozenCopy(self._model_dir, dtype, self._engine.device, config.offload_reference)
        return PolicyObjective(self._engine, config.objective, reference, temperature)

    @torch.no_grad()
    def evaluate(self, minibatch: RankBatch) -> StepSums:
        """Compute the loss of a minibatch of all ranks, and change nothing."""
        self._engine.eval()
        self._objective.begin_step([minibatch])
        sums = StepSums()
        for micro_batch in minibatch.micro_batches:
            _, part = self._objective(micro_batch, minibatch.totals)
            sums += part.weighted(1.0 if micro_batch else 0.0, 1.0)
        return sums

    def step(
        self, step: int, minibatches: Sequence[RankBatch], stop_requested: Callable[[], bool]
    ) -> StepSums:
        """Make one optimizer update from each minibatch of all ranks, in every epoch; or none at all if any
        rank was asked to stop before the first.

        Raises `NotFiniteError` on every rank, before the update, when a loss or the gradient is not finite.
        """
        schedule = [minibatch for _ in range(self._config.objective.epochs) for minibatch in minibatches]
        self._engine.eval()
        self._objective.begin_step(minibatches)
        sums = StepSums()
        self._engine.train()
        for update, minibatch in enumerate(schedule):
            last = len(minibatch.micro_batches) - 1
            for index, micro_batch in enumerate(minibatch.micro_batches):
                if self._must_stop(step, stop_requested(), sums.loss) and update == 0:
                    return self._give_up(sums)
                self._engine.set_gradient_accumulation_boundary(index == last)
                loss, part = self._objective(micro_batch, minibatch.totals)
                weight = 1.0 if micro_batch else 0.0  # an empty one only takes part
                # DeepSpeed averages gradients over the ranks; the objective is a sum over them.
                self._engine.backward(loss * self._config.num_ranks * weight)
                sums += part.weighted(weight, 1 / len(schedule))
            if self._must_stop(step, stop_requested(), sums.loss) and update == 0:
                return self._give_up(sums)
            lr = self._engine.get_lr()[0]
            sums += StepSums(grad_norm=self._update(step), lr=lr)
        return sums

    def weights(self, adapter_only: bool = False) -> PolicyWeights | AdapterWeights:
        """Return the policy's weights, its adapter merged, or the adapter alone; read on every rank
        together."""
        return AdapterWeights(self._policy) if adapter_only else PolicyWeights(self._policy)

    def export(self, path: Path) -> None:
        """Write the policy, its adapter merged; and the adapter alone (`adapter_folder`). Of a
        policy whose weights are averaged, it is the average."""
        average = self._average.values if self._average is not None else None
        export_model(self._policy, PolicyWeights(self._policy, average), self._model_dir, path, self._rank)
        if self._config.lora.rank > 0:
            weights = AdapterWeights(self._policy, average)
            export_adapter(weights, self._config.lora, self._model_dir, adapter_folder(path), self._rank)
        ds.wait_for_rank_0(self._rank, self._config.step_timeout_s)  # when it returns, the folder is there

    def _must_stop(self, step: int, requested: bool, loss: float) -> bool:
        """Return whether any rank was asked to stop. Asked of all ranks together, so that none goes on
        alone."""
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
