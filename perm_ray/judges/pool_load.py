"""Measure how busy the pools were, so that a user sees which perspective to give more replicas. Pure.

Times are seconds since the epoch. The driver's and the engines' clocks are compared, so on several
nodes the shares are as good as the nodes' clocks agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call to a judge: when it was made and answered, when its engine worked, how many texts."""

    num_tasks: int
    submitted_at: float
    received_at: float
    worked: tuple[Interval, ...]


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """One pool in one step. `shared` texts were equal to one that was judged and took its judgment."""

    calls: tuple[CallRecord, ...] = ()
    shared: int = 0

    @property
    def worked(self) -> list[Interval]:
        """When any engine worked for the pool, as disjoint intervals in order."""
        return merge([interval for call in self.calls for interval in call.worked])

    @property
    def queue_max(self) -> int:
        """Return the most texts that waited or were being judged at the same time."""
        events = [(call.submitted_at, call.num_tasks) for call in self.calls]
        events += [(_finished(call), -call.num_tasks) for call in self.calls]
        queued = most = 0
        for _, change in sorted(events):
            queued += change
            most = max(most, queued)
        return most


def load_metrics(loads: Mapping[str, PoolLoad], sampled_at: float) -> dict[str, float]:
    """Return the step's metrics; `sampled_at` is when the last completion was there.

    judge/<p>/queue_max  most texts waiting or being judged at once
    judge/<p>/busy       share of the judging time in which the pool had work running
    judge/<p>/wait_s     how long the step waited for the pool after sampling
    judge/<p>/shared     texts that took the judgment of an equal one
    judge/busy_together  share of the judging time in which all pools had work running

    Judging time is from the first work of any pool to the last.
    """
    metrics: dict[str, float] = {}
    spans = {name: load.worked for name, load in loads.items()}
    everything = merge([interval for span in spans.values() for interval in span])
    whole = everything[-1][1] - everything[0][0] if everything else 0.0
    for name, load in loads.items():
        last = max((call.received_at for call in load.calls), default=sampled_at)
        metrics[f"judge/{name}/queue_max"] = float(load.queue_max)
        metrics[f"judge/{name}/wait_s"] = max(0.0, last - sampled_at)
        metrics[f"judge/{name}/shared"] = float(load.shared)
        if whole > 0:
            metrics[f"judge/{name}/busy"] = total_duration(spans[name]) / whole
    if whole > 0:
        metrics["judge/busy_together"] = total_duration(intersect_all(list(spans.values()))) / whole
    return metrics


def merge(intervals: Sequence[Interval]) -> list[Interval]:
    """Return the union, as disjoint intervals in order."""
    merged: list[Interval] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def intersect_all(spans: Sequence[Sequence[Interval]]) -> list[Interval]:
    """Return the intersection of `spans`, each disjoint and in order."""
    common = list(spans[0]) if spans else []
    for span in spans[1:]:
        pairs = [(max(a, c), min(b, d)) for a, b in common for c, d in span]
        common = [(begin, end) for begin, end in pairs if begin < end]
    return common


def total_duration(intervals: Sequence[Interval]) -> float:
    """Return the summed length of disjoint intervals, in seconds."""
    return math.fsum(end - begin for begin, end in intervals)


def _finished(call: CallRecord) -> float:
    return max((end for _, end in call.worked), default=call.received_at)
