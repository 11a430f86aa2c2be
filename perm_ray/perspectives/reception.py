"""Reception: was the seeker met? Here the judge *is* the seeker, and says how the reply felt.

The third part of the Empathy Cycle, inside the seeker; it reads the response.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from perm_ray.perspectives.perspective import ExpectedDigit, Kind, Reads, Scale, WithRubric
from perm_ray.types import Scenario


@dataclass(frozen=True)
class Reception(WithRubric):
    name: str = field(default="reception", init=False)
    kind: Kind = field(default="empathy", init=False)
    reads: Reads = field(default="response", init=False)
    scale: Scale = field(default=Scale(1, 5), init=False)

    def ask(self, scenario: Scenario, text: str, fence: str) -> ExpectedDigit:
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
        prompt = self.judge_prompt(setting, text, fence, task, "I give this reply a score of ")
        return ExpectedDigit(prompt, self.scale.values)
