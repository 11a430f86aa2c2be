"""Bystander: is the reply sound, seen from outside? A neutral third party, whom warmth must not move.

It keeps the three empathy perspectives honest: it reads the response and only ever takes away from
the reward. Five criteria of 0 to 20 points, which we add up to 0 to 100.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from perm_ray.judges.asking import Question
from perm_ray.judges.perspective import Kind, Reads, WithRubric, seen_from_outside
from perm_ray.types import Scale, Scenario

# One word each: a judge that answers in words writes them out for every reply.
CRITERIA = ("content", "structure", "efficiency", "objectivity", "accuracy")
CRITERION_SCALE = Scale(0, 20)


@dataclass(frozen=True)
class Bystander(WithRubric):
    name: str = field(default="bystander", init=False)
    kind: Kind = field(default="bystander", init=False)
    reads: Reads = field(default="response", init=False)
    scale: Scale = field(default=Scale(0, 100), init=False)

    def question(self, scenario: Scenario, text: str, fence: str) -> Question:
        setting = seen_from_outside(scenario, "The reply:")
        names = ", ".join(CRITERIA)
        task = f"Read the reply again and give its points for {names}, each from 0 (no) to 20 (yes)."
        messages = self.chat(scenario, setting, text, fence, task)
        return Question(messages, "My points for this reply:\n", CRITERION_SCALE, CRITERIA)
