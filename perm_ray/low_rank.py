"""A low-rank adapter merged into the weight it adds to: one rule, for the trainer and for the engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DOWN, UP = (
    ".lora_A",
    ".lora_B",
)  # after the weight's name: an adapter's two matrices on their way to an engine


def merge(weight: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """W + scaling * B A (LoRA, arXiv 2106.09685, eq. 3), added in float32 and rounded once to W's dtype.

    `down` is A [rank, in], `up` is B [out, rank]; none of the three is changed.
    """
    return (weight.float() + scaling * (up.float() @ down.float())).to(weight.dtype)
