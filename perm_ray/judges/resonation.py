"""Resonation: does the supporter's analysis enter the seeker's frame of reference?

The first part of the Empathy Cycle, inside the supporter and not yet said; it reads the analysis.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from perm_ray.judges.asking import Question
from perm_ray.judges.perspective import Kind, Reads, WithRubric, seen_from_outside
from perm_ray.types import Scale, Scenario


@dataclass(frozen=True)
class Resonation(WithRubric):
    name: str = field(default="resonation", init=False)
    kind: Kind = field(default="empathy", init=False)
    reads: Reads = field(default="analysis", init=False)
    scale: Scale = field(default=Scale(1, 5), init=False)

    def question(self, scenario: Scenario, text: str, fence: str) -> Question:
        setting = seen_from_outside(scenario, "The supporter's private analysis of the seeker:")
        task = (
            "Read the analysis again. Does it show that the supporter understood this seeker? "
            "1 = no, 5 = yes."
        )
        messages = self.chat(scenario, setting, text, fence, task)
        return Question(messages, "I give this analysis a score of ", self.scale)
