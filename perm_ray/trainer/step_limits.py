"""Check that a step looks healthy, before the loop publishes, records or saves what it made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from perm_ray.config.training import LimitsConfig
from perm_ray.errors import LimitError


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The limits of `trainer.limits`; `note` tells people of a limit that only warns."""

    config: LimitsConfig
    note: Callable[[str], None]

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raise `LimitError` when a metric is over its limit and the action is to stop; warn otherwise."""
        over = exceeded(metrics, self.config)
        if over and self.config.action == "stop":
            raise LimitError(f"Step {step} went past a limit: {' and '.join(over)}.")
        for sentence in over:
            self.note(f"Step {step}: {sentence}.")


def exceeded(metrics: Mapping[str, float], limits: LimitsConfig) -> list[str]:
    """Return a sentence for each limit that a step's metrics are over.

    A metric that is not there (of a step without an update) is under every limit; NaN is over.
    """
    over = []
    metric_names = {"grad_norm": "grad_norm", "kl": "kl", "logprob_diff": "logprob_diff_mean"}
    for name, metric in metric_names.items():
        value, limit = metrics.get(f"policy/{metric}", 0.0), getattr(limits, name)
        if limit is not None and not value <= limit:
            over.append(f"policy/{metric} is {value:.4g}, over trainer.limits.{name} of {limit:g}")
    return over
