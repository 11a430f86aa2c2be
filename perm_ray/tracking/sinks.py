"""Tell everything that records a run what happened: the run directory, MLflow, gauges, the terminal.

A sink overrides what it records. The loop speaks to `Sinks` and does not know which ones there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from perm_ray.types import RolloutGroup

Purpose = Literal["train", "heldout", "probe"]


class Sink:
    """Record nothing; the base of everything that records.

    No call may wait on a network, or raise because of one.
    """

    def rollouts(self, step: int, groups: Sequence[RolloutGroup], purpose: Purpose = "train") -> None:
        """Record the judged rollouts of `step` (0: before training)."""

    def metrics(self, step: int, metrics: Mapping[str, float], purpose: Purpose = "train") -> None:
        """Record numbers; the names of held-out ones begin with `heldout/`, those of probes with `probe/`."""


class Sinks(Sink):
    """Pass everything to each sink, in order: the run directory first, which has to have it."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def rollouts(self, step: int, groups: Sequence[RolloutGroup], purpose: Purpose = "train") -> None:
        for sink in self._sinks:
            sink.rollouts(step, groups, purpose)

    def metrics(self, step: int, metrics: Mapping[str, float], purpose: Purpose = "train") -> None:
        for sink in self._sinks:
            sink.metrics(step, metrics, purpose)
