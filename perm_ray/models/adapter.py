"""A low-rank adapter, as all rooms know it: how it is merged into the weights, and where it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DOWN, UP = ".lora_A", ".lora_B"  # after the weight's name: an adapter's matrices on their way to an engine


def adapter_folder(policy: Path) -> Path:
    """Return the folder of an exported policy's adapter alone: beside the folder that has it merged."""
    return policy.with_name(f"{policy.name}_adapter")


def merge(weight: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """W + scaling * B A (LoRA, arXiv 2106.09685, eq. 3), added in float32 and rounded once to W's dtype.

    `down` is A [rank, in], `up` is B [out, rank]; none of the three is changed.
    """
    return (weight.float() + scaling * (up.float() @ down.float())).to(weight.dtype)
