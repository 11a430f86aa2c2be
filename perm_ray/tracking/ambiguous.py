"""Rollouts that people should read: where a judge was unsure, or the perspectives disagree. Pure.

The paper names ambiguous cues as a limit of judging. A score cannot show it; the judge's own
distribution, and the other perspectives, can.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from perm_ray.config.judges import AmbiguityConfig
from perm_ray.judges.perspective import Perspective
from perm_ray.types import Judgment, Rollout, Status


@dataclass(frozen=True)
class AmbiguityRule:
    """Says of a rollout why it is ambiguous, if it is."""

    config: AmbiguityConfig
    perspectives: Mapping[str, Perspective]

    def reasons(self, rollout: Rollout) -> tuple[str, ...]:
        """Return one sentence for each judge that was unsure and one for perspectives that disagree."""
        scored = {
            name: judgment for name, judgment in rollout.judgments.items() if judgment.status == Status.OK
        }
        unsure = [
            f"{name} is unsure: the entropy of its score is {share:.2f} of the most there can be"
            for name, judgment in scored.items()
            if (share := relative_entropy(judgment)) > self.config.entropy
        ]
        empathy = {
            name: self._height(name, judgment)
            for name, judgment in scored.items()
            if self.perspectives[name].kind == "empathy"
        }
        if len(empathy) < 2:
            return tuple(unsure)
        lowest, highest = min(empathy, key=empathy.__getitem__), max(empathy, key=empathy.__getitem__)
        if empathy[highest] - empathy[lowest] <= self.config.disagreement:
            return tuple(unsure)
        low, high = scored[lowest].score, scored[highest].score
        return (*unsure, f"the perspectives disagree: {lowest} {low:.1f}, {highest} {high:.1f}")

    def strength(self, rollout: Rollout) -> float:
        """Return how ambiguous a rollout is: its highest entropy as a share, plus the disagreement."""
        judgments = rollout.judgments
        heights = [
            self._height(name, judgment)
            for name, judgment in judgments.items()
            if judgment.status == Status.OK and self.perspectives[name].kind == "empathy"
        ]
        spread = max(heights) - min(heights) if heights else 0.0
        return spread + max((relative_entropy(judgment) for judgment in judgments.values()), default=0.0)

    def _height(self, name: str, judgment: Judgment) -> float:
        scale = self.perspectives[name].scale
        return ((judgment.score or 0.0) - scale.low) / (scale.high - scale.low)


def relative_entropy(judgment: Judgment) -> float:
    """Return a judgment's entropy as a share of that of a judge who has no idea; 0 when it is not known."""
    if judgment.entropy is None or len(judgment.distribution) < 2:
        return 0.0
    return judgment.entropy / math.log(len(judgment.distribution))
