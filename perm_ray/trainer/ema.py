"""A moving average of what is trained, for export: smoother than the last step's weights.

Rank 0 keeps it, in float32 and in host memory; every rank takes part in reading the weights. It is a part of
checkpoints (`state.py`), and `weights.py` exports it in the policy's stead.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from perm_ray.errors import CheckpointError
from perm_ray.trainer.weights import gathered


class WeightAverage:
    """After each update, average = decay * average + (1 - decay) * weights, from the first weights on."""

    def __init__(self, module: nn.Module, decay: float, rank: int) -> None:
        self._decay = decay
        self._trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.values: dict[nn.Parameter, Tensor] = {}
        for parameter, weight in gathered([parameter for _, parameter in self._trained]):
            if rank == 0:
                self.values[parameter] = weight.to("cpu", torch.float32, copy=True)

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the weights. A collective."""
        for parameter, weight in gathered([parameter for _, parameter in self._trained]):
            if parameter in self.values:
                self.values[parameter].lerp_(weight.to("cpu", torch.float32), 1 - self._decay)

    def state(self) -> dict[str, Tensor]:
        """Return a copy, by name; empty on ranks other than 0."""
        return {name: self.values[p].clone() for name, p in self._trained if p in self.values}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` returned."""
        for name, parameter in self._trained:
            if parameter in self.values:
                if name not in state:
                    raise CheckpointError(
                        f"The checkpoint's averaged weights lack {name}: resume with the trainer.lora and "
                        "trainer.ema_decay it was made with."
                    )
                self.values[parameter].copy_(state[name])
