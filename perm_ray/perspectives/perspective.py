"""What a perspective is: whose eyes a judge looks through, what it reads, and what it is asked.

A judge actor calls `perspective.ask(scenario, text, fence)`, puts the returned `Ask` to its engine and
hands the engine's answer to the matching scorer in `scoring.py`. Nothing here talks to a model. The
prompt's order serves the engine's prefix cache: the rubric (the same for every call of a perspective),
then the scenario (the same for a whole group), then the completion.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, Protocol

from perm_ray.errors import ConfigError
from perm_ray.perspectives.guard import DEFAULT_MAX_CHARS, fenced, sanitise
from perm_ray.types import Message, Scenario

Kind = Literal["empathy", "bystander"]
Reads = Literal["analysis", "response"]


@dataclass(frozen=True, slots=True)
class Scale:
    """The whole numbers from `low` to `high`, both included."""

    low: int
    high: int

    @property
    def values(self) -> tuple[int, ...]:
        return tuple(range(self.low, self.high + 1))


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A chat for a judge, and the opening of the judge's own turn.

    `answer_prefix` ends exactly where the first digit of the answer comes (its trailing space
    included: the common tokenisers then write the digit as a token of its own).
    """

    messages: tuple[Message, ...]
    answer_prefix: str


@dataclass(frozen=True, slots=True)
class ExpectedDigit:
    """Ask for one token: the engine returns the log-probability of each of `values` as the next token.

    Scored with `scoring.expected_score`.
    """

    prompt: JudgePrompt
    values: tuple[int, ...]

    def __post_init__(self) -> None:
        if not all(0 <= value <= 9 for value in self.values):
            raise ValueError(f"an expected digit is one token, 0 to 9, found {self.values}")


@dataclass(frozen=True, slots=True)
class ConstrainedText:
    """Ask for a short text that matches `regex`; the text goes on right after the answer prefix.

    Scored with `scoring.criteria_score(text, criteria, criterion_scale)`.
    """

    prompt: JudgePrompt
    regex: str
    max_tokens: int
    criteria: tuple[str, ...]
    criterion_scale: Scale


Ask = ExpectedDigit | ConstrainedText


class Perspective(Protocol):
    """One way of looking at a reply. `kind` is its role in the reward, `reads` the section it judges.

    `text` is the raw section: `ask` sanitises it, so that no caller can forget to. `fence` comes from
    `guard.make_fence`.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def reads(self) -> Reads: ...
    @property
    def scale(self) -> Scale: ...
    @property
    def rubric(self) -> str: ...
    @property
    def rubric_digest(self) -> str: ...

    def ask(self, scenario: Scenario, text: str, fence: str) -> Ask: ...


@dataclass(frozen=True)
class WithRubric:
    """What every built-in perspective is built with: its rubric's text and the cap on what it reads."""

    rubric: str
    max_chars: int = DEFAULT_MAX_CHARS

    @property
    def rubric_digest(self) -> str:
        """Names the rubric's text in judgments, so that scores under different rubrics never mix."""
        return hashlib.sha256(self.rubric.encode()).hexdigest()[:12]

    def judge_prompt(
        self, scenario: str, text: str, fence: str, task: str, answer_prefix: str
    ) -> JudgePrompt:
        """Rubric; scenario; the fenced text; and the task once more, because the text came in between."""
        guarded = fenced(sanitise(text, self.max_chars, fence), fence)
        user = f"{scenario}\n\n{guarded}\n\n{task}"
        return JudgePrompt((Message("system", self.rubric), Message("user", user)), answer_prefix)


def seen_from_outside(scenario: Scenario, what_follows: str) -> str:
    """The scenario for a judge who is not the seeker; the text to judge comes next."""
    return (
        f"The seeker: {scenario.persona}\n"
        f"The situation: {scenario.situation}\n"
        f"The seeker said: {scenario.query}\n\n"
        f"{what_follows}"
    )


def load_rubric(name: str, path: str | Path | None = None) -> str:
    """The rubric at `path`, or the built-in one of the perspective `name`."""
    key = f"judges.pools.{name}.rubric"
    source = (
        resources.files("perm_ray.perspectives") / "rubrics" / f"{name}.md" if path is None else Path(path)
    )
    try:
        text = source.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"{key} must be a UTF-8 Markdown file that can be read, found {str(source)!r} ({why})."
        ) from error
    if not text:
        raise ConfigError(f"{key} must be a file with a rubric in it, found {str(source)!r}, which is empty.")
    return text
