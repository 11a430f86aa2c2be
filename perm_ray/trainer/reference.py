"""The frozen model that the KL penalty compares with: a copy, or the policy without its adapter.

`learner.py` makes one when the KL coefficient is above 0, and calls it without gradient.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from perm_ray.trainer.deepspeed import Engine
from perm_ray.trainer.lora import without_adapter
from perm_ray.trainer.packing import PackedBatch, load_policy


class FrozenCopy:
    """A second copy of the policy's first weights; with `offload` in host memory between uses."""

    def __init__(self, model_dir: Path, dtype: torch.dtype, device: torch.device, offload: bool) -> None:
        self._device = device
        self._offload = offload
        self._model: nn.Module = load_policy(model_dir, dtype).requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, batch: PackedBatch) -> Tensor:
        """Log-probability of each completion token [C]."""
        self._model.to(self._device)
        logprobs, _ = self._model(batch)
        if self._offload:
            self._model.to("cpu")
        return logprobs


class WithoutAdapter:
    """The policy with its adapter off is what it was before training: no second copy is needed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @torch.no_grad()
    def __call__(self, batch: PackedBatch) -> Tensor:
        """Log-probability of each completion token [C]. All ranks call it together."""
        with without_adapter(self._engine.module):
            logprobs, _ = self._engine(batch)
        return logprobs
