"""Map the tokens of a packed micro-batch to their completions: sums and means per completion. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segments:
    """S completions that lie end to end in C tokens: `owners` [C] has each token's completion, `lengths` [S]
    each completion's tokens."""

    owners: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | None = None) -> Segments:
        """From the lengths of the completions, each at least 1."""
        counts = torch.tensor(lengths, device=device)
        owners = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts)
        return cls(owners, counts)

    def total(self, values: Tensor) -> Tensor:
        """[C] -> [S]: each completion's sum."""
        return values.new_zeros(len(self.lengths)).index_add(0, self.owners, values)

    def mean(self, values: Tensor) -> Tensor:
        """[C] -> [S]: each completion's mean."""
        return self.total(values) / self.lengths

    def spread(self, values: Tensor) -> Tensor:
        """[S] -> [C]: each completion's value at all of its tokens."""
        return values[self.owners]
