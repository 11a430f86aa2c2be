"""Frozen reference of the KL penalty: a copy, or the policy without its adapter.

`learner.py` makes one when the KL coefficient is above 0, and calls it without gradient.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perm_ray.trainer.deepspeed import Engine
from perm_ray.trainer.lora import without_adapter
from perm_ray.trainer.packing import PackedBatch, load_policy


class FrozenCopy:
    """A second copy of the policy's first weights.

    With `offload` they live in pinned host memory. A use copies them to the device and drops the copy
    afterwards: frozen weights need no way back.
    """

    def __init__(self, model_dir: Path, dtype: torch.dtype, device: torch.device, offload: bool) -> None:
        self._device = device
        self._model: Any = load_policy(model_dir, dtype).requires_grad_(False).eval()
        self._host: dict[nn.Parameter, Tensor] = {}
        if offload:
            pinned = device.type == "cuda"
            for parameter in self._model.parameters():
                self._host[parameter] = parameter.data.pin_memory() if pinned else parameter.data
        self._model.to(device)
        self._release()

    @torch.no_grad()
    def __call__(self, batch: PackedBatch) -> Tensor:
        """Return log-probability of each trained token [C]."""
        for parameter, host in self._host.items():
            parameter.data = host.to(self._device, non_blocking=True)
        logprobs, _ = self._model(batch)
        self._release()
        return logprobs

    def _release(self) -> None:
        """Free the device copies of weights that are offloaded."""
        for parameter, host in self._host.items():
            parameter.data = host


class WithoutAdapter:
    """The policy with its adapter off is what it was before training: no second copy is needed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @torch.no_grad()
    def __call__(self, batch: PackedBatch) -> Tensor:
        """Return log-probability of each trained token [C]. All ranks call it together."""
        with without_adapter(self._engine.module):
            logprobs, _ = self._engine(batch)
        return logprobs
