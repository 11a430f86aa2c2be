"""Reception: was the seeker met? Here the judge *is* the seeker, and says how the reply felt.

The third part of the Empathy Cycle, inside the seeker; it reads the response.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from perm_ray.judges.asking import Question
from perm_ray.judges.perspective import Kind, Reads, WithRubric
from perm_ray.types import Scale, Scenario


@dataclass(frozen=True)
class Reception(WithRubric):
    name: str = field(default="reception", init=False)
    kind: Kind = field(default="empathy", init=False)
    reads: Reads = field(default="response", init=False)
    scale: Scale = field(default=Scale(1, 5), init=False)

    def question(self, scenario: Scenario, text: str, fence: str) -> Question:
        setting = (
            f"Who you are: {scenario.persona}\n"
            f"What is happening to you: {scenario.situation}\n"
            f"What you said: {scenario.query}\n\n"
            "What you heard back:"
        )
        task = (
            "Read the reply again, as yourself. Do you feel met, and do you want to go on talking? "
            "1 = no, 5 = yes."
        )
        messages = self.chat(scenario, setting, text, fence, task)
        return Question(messages, "I give this reply a score of ", self.scale)
