"""Bystander: is the reply sound, seen from outside? A neutral third party, whom warmth must not move.

It keeps the three empathy perspectives honest: it reads the response and only ever takes away from
the reward. Five criteria of 0 to 20 points, which we add up to 0 to 100.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from perm_ray.perspectives.perspective import (
    ConstrainedText,
    Kind,
    Reads,
    Scale,
    WithRubric,
    seen_from_outside,
)
from perm_ray.perspectives.scoring import answer_opening, criteria_regex
from perm_ray.types import Scenario

# One word each: the judge writes them out for every reply, one token at a time.
CRITERIA = ("content", "structure", "efficiency", "objectivity", "accuracy")
CRITERION_SCALE = Scale(0, 20)


@dataclass(frozen=True)
class Bystander(WithRubric):
    name: str = field(default="bystander", init=False)
    kind: Kind = field(default="bystander", init=False)
    reads: Reads = field(default="response", init=False)
    scale: Scale = field(default=Scale(0, 100), init=False)

    def ask(self, scenario: Scenario, text: str, fence: str) -> ConstrainedText:
        setting = seen_from_outside(scenario, "The reply:")
        names = ", ".join(CRITERIA)
        task = f"Read the reply again and give its points for {names}, each from 0 (no) to 20 (yes)."
        opening = f"My points for this reply:\n{answer_opening(CRITERIA)}"
        prompt = self.judge_prompt(setting, text, fence, task, opening)
        return ConstrainedText(
            prompt=prompt,
            regex=criteria_regex(CRITERIA, CRITERION_SCALE),
            max_tokens=64,
            criteria=CRITERIA,
            criterion_scale=CRITERION_SCALE,
        )
