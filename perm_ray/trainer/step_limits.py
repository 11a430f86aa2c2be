"""Does a step look healthy? The driver asks before it syncs, records or saves what the step made."""

from __future__ import annotations

from collections.abc import Mapping

from perm_ray.config.training import LimitsConfig


def exceeded(metrics: Mapping[str, float], limits: LimitsConfig) -> list[str]:
    """Which limits of `trainer.limits` a step's metrics are over, in words; empty when none is.

    A number that is not there (of a step without an update) is under every limit; one
    that is not a number is over.
    """
    over = []
    for name, limit in (("grad_norm", limits.grad_norm), ("kl", limits.kl)):
        value = metrics.get(f"policy/{name}", 0.0)
        if limit is not None and not value <= limit:
            over.append(f"policy/{name} is {value:.4g}, over trainer.limits.{name} of {limit:g}")
    return over
