"""Merge what the ranks report of a step into the step's metrics. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

# Equal on every rank, or the largest of all; everything else adds up.
_LARGEST = ("logprob_diff_max", "mismatch_max", "grad_norm", "lr", "interrupted")


@dataclass(frozen=True, slots=True)
class StepSums:
    """One rank's part of a step: sums over its completion tokens, so that ranks of unequal load add up.

    A token counts once an update. `loss` is this rank's part of the objective, averaged over the updates;
    `mismatch` sums the ratios trainer over sampler. `grad_norm` (of the whole gradient, before clipping, the
    largest of the updates) and `lr` are equal on every rank. `interrupted` marks a step that was given up on
    request: no update was made.
    """

    tokens: float = 0.0
    loss: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    clipped: float = 0.0
    logprob_diff: float = 0.0
    mismatch: float = 0.0
    mismatch_kl: float = 0.0
    mismatch_clipped: float = 0.0
    logprob_diff_max: float = 0.0
    mismatch_max: float = 0.0
    grad_norm: float = 0.0
    lr: float = 0.0
    interrupted: bool = False

    def __add__(self, other: StepSums) -> StepSums:
        merged = {}
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            merged[field.name] = max(mine, theirs) if field.name in _LARGEST else mine + theirs
        return StepSums(**merged)

    def weighted(self, weight: float, share_of_step: float) -> StepSums:
        """Return the sums as they count in a step: nothing of a micro-batch that only took part (`weight` 0),
        and the loss for one update's share."""
        scaled = {f.name: getattr(self, f.name) * weight for f in fields(self) if f.name != "interrupted"}
        return StepSums(**{**scaled, "loss": scaled["loss"] * share_of_step})


def step_metrics(reports: Sequence[StepSums]) -> dict[str, float]:
    """Return the step's metrics from every rank's report; all but the loss are per completion token."""
    total = sum(reports, StepSums())
    return {
        "policy/loss": total.loss,
        "policy/kl": total.kl / total.tokens,
        "policy/entropy": total.entropy / total.tokens,
        "policy/clip_fraction": total.clipped / total.tokens,
        "policy/logprob_diff_mean": total.logprob_diff / total.tokens,
        "policy/logprob_diff_max": total.logprob_diff_max,
        "policy/mismatch_mean": total.mismatch / total.tokens,
        "policy/mismatch_max": total.mismatch_max,
        "policy/mismatch_kl": total.mismatch_kl / total.tokens,
        "policy/mismatch_clipped": total.mismatch_clipped / total.tokens,
        "policy/grad_norm": total.grad_norm,
        "policy/lr": total.lr,
    }
