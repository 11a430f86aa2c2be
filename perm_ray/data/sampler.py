"""Choose the scenarios that come next: a seeded order with a cursor that a checkpoint can hold.

The driver takes one batch of indices each step. The order is a function of the seed alone, so a run
that is resumed sees the batches that the uninterrupted run would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TypeGuard

from perm_ray.errors import CheckpointError, ConfigError


class ScenarioSampler:
    """Batches of scenario indices; every scenario exactly once in each epoch.

    Each epoch has its own permutation, drawn from the seed and the epoch's number. When an epoch
    ends within a batch, the batch is filled from the next one. A scenario already in that batch must
    not come again in it, so those `carried` over move back in the new permutation, to just behind the
    part that fills the batch: the batch has no scenario twice, and the new epoch still has each once.
    """

    def __init__(self, num_scenarios: int, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= num_scenarios:
            raise ConfigError(
                f"rollout.prompts_per_step must be between 1 and the number of scenarios in data.train, "
                f"{num_scenarios}, found {batch_size}: lower it or give more scenarios."
            )
        self._num_scenarios = num_scenarios
        self._batch_size = batch_size
        self._seed = seed
        self._start_epoch(0, (), 0)

    def next_batch(self, size: int | None = None) -> tuple[int, ...]:
        """Return the next `size` indices (at most the batch size, which is the default)."""
        size = self._batch_size if size is None else size
        if not 0 <= size <= self._batch_size:
            raise ValueError(f"size must be between 0 and the batch size {self._batch_size}, found {size}")
        batch = self._take(size)
        if len(batch) < size:
            self._start_epoch(self._epoch + 1, batch, size - len(batch))
            batch += self._take(size - len(batch))
        return batch

    def state(self) -> dict[str, object]:
        """Return the cursor, as plain JSON: what was drawn so far, and from what."""
        return {
            "num_scenarios": self._num_scenarios,
            "batch_size": self._batch_size,
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "carried": list(self._carried),
            "filling": self._filling,
        }

    def restore(self, state: Mapping[str, object]) -> None:
        """Go on where the sampler that gave `state` stood; it must be of the same data and config."""
        names = {
            "num_scenarios": "the number of scenarios in data.train",
            "batch_size": "rollout.prompts_per_step",
            "seed": "run.seed",
        }
        mine = self.state()
        for key, name in names.items():
            if state.get(key) != mine[key]:
                raise CheckpointError(
                    f"the checkpoint's data cursor expects {name} to be {state.get(key)!r}, found "
                    f"{mine[key]!r}: resume with the run's own configuration and data, or start a new run."
                )
        epoch, position, carried = state.get("epoch"), state.get("position"), state.get("carried")
        filling = state.get("filling")
        if not (
            _is_count(epoch, None)
            and _is_count(filling, self._batch_size)
            and _is_count(position, self._num_scenarios)
            and isinstance(carried, list | tuple)
            and len(carried) < self._batch_size
            and all(_is_count(index, self._num_scenarios - 1) for index in carried)
            and len(set(carried)) == len(carried)
        ):
            raise CheckpointError(
                f"the checkpoint's data cursor makes no sense (epoch {epoch!r}, position {position!r}, "
                f"carried {carried!r}, filling {filling!r}): use an earlier checkpoint."
            )
        self._start_epoch(epoch, tuple(carried), filling)
        self._position = position

    def _take(self, count: int) -> tuple[int, ...]:
        taken = self._order[self._position : self._position + count]
        self._position += len(taken)
        return taken

    def _start_epoch(self, epoch: int, carried: tuple[int, ...], filling: int) -> None:
        """Begin `epoch` within a batch that already holds the indices `carried` and takes `filling` more."""
        order = list(range(self._num_scenarios))
        # Its own generator, seeded by text: no global state, and an epoch needs no earlier one.
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        if carried:
            head = [index for index in order if index not in carried][:filling]
            order = head + [index for index in order if index not in head]
        self._epoch = epoch
        self._carried = carried
        self._filling = filling
        self._order = tuple(order)
        self._position = 0


def _is_count(value: object, most: int | None) -> TypeGuard[int]:
    """Return whether a value is a whole number from 0 to `most` (a bool is none)."""
    return type(value) is int and value >= 0 and (most is None or value <= most)
