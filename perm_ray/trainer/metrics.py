"""What one rank reports of one step, and how the ranks' reports become the step's metrics. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepSums:
    """One rank's part of a step: sums over its completion tokens, so that ranks of unequal load add up.

    `grad_norm` (of the whole gradient, before clipping) and `lr` are equal on every rank.
    `interrupted` marks a step that was given up on request: no update was made.
    """

    tokens: float = 0.0
    loss: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    clipped: float = 0.0
    logprob_diff: float = 0.0
    logprob_diff_max: float = 0.0
    grad_norm: float = 0.0
    lr: float = 0.0
    interrupted: bool = False

    def __add__(self, other: StepSums) -> StepSums:
        return StepSums(
            tokens=self.tokens + other.tokens,
            loss=self.loss + other.loss,
            kl=self.kl + other.kl,
            entropy=self.entropy + other.entropy,
            clipped=self.clipped + other.clipped,
            logprob_diff=self.logprob_diff + other.logprob_diff,
            logprob_diff_max=max(self.logprob_diff_max, other.logprob_diff_max),
            grad_norm=max(self.grad_norm, other.grad_norm),
            lr=max(self.lr, other.lr),
            interrupted=self.interrupted or other.interrupted,
        )


def step_metrics(reports: Sequence[StepSums]) -> dict[str, float]:
    """The step's metrics from every rank's report; means are per completion token."""
    total = sum(reports, StepSums())
    return {
        "policy/loss": total.loss / total.tokens,
        "policy/kl": total.kl / total.tokens,
        "policy/entropy": total.entropy / total.tokens,
        "policy/clip_fraction": total.clipped / total.tokens,
        "policy/logprob_diff_mean": total.logprob_diff / total.tokens,
        "policy/logprob_diff_max": total.logprob_diff_max,
        "policy/grad_norm": total.grad_norm,
        "policy/lr": total.lr,
    }
