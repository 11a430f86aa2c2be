"""Expression: is the understanding conveyed in a warm, human, fitting way?

The second part of the Empathy Cycle, what the supporter communicates; it reads the response.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from perm_ray.judges.asking import Question
from perm_ray.judges.perspective import Kind, Reads, WithRubric, seen_from_outside
from perm_ray.types import Scale, Scenario


@dataclass(frozen=True)
class Expression(WithRubric):
    name: str = field(default="expression", init=False)
    kind: Kind = field(default="empathy", init=False)
    reads: Reads = field(default="response", init=False)
    scale: Scale = field(default=Scale(1, 5), init=False)

    def question(self, scenario: Scenario, text: str, fence: str) -> Question:
        setting = seen_from_outside(scenario, "The supporter's reply:")
        task = (
            "Read the reply again. Does it show, in warm and human words, that the supporter understood "
            "this seeker? 1 = no, 5 = yes."
        )
        messages = self.chat(scenario, setting, text, fence, task)
        return Question(messages, "I give this reply a score of ", self.scale)
