"""What a perspective is: whose eyes a judge looks through, what it reads, and what it is asked.

A judge calls `perspective.question(scenario, text, fence)` and lets a scoring mode (`modes.py`) put it
to an engine. Nothing here talks to a model. The chat's order serves the engine's prefix cache: the
rubric (the same for every call of a perspective), then the scenario (the same for a whole group), then
the text.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from perm_ray.errors import ConfigError
from perm_ray.judges.asking import Question
from perm_ray.judges.guard import DEFAULT_MAX_CHARS, fenced, sanitise
from perm_ray.types import Message, Scale, Scenario

Kind = Literal["empathy", "bystander"]
Reads = Literal["analysis", "response"]


@dataclass(frozen=True)
class Rubric:
    """What a judge is told to look for, in Markdown; `variants` are the same in other languages.

    A scenario tagged `pt-BR` is judged under the variant `pt-br`, else `pt`, else the text itself.
    """

    text: str
    variants: Mapping[str, str] = field(default_factory=dict)

    def of(self, language: str | None) -> str:
        """The rubric for a scenario in `language` (a BCP 47 tag, or None)."""
        tag = (language or "").lower()
        return self.variants.get(tag) or self.variants.get(tag.split("-")[0]) or self.text

    def digest(self, language: str | None = None) -> str:
        """Names the rubric's text in judgments, so that scores under different rubrics never mix."""
        return hashlib.sha256(self.of(language).encode()).hexdigest()[:12]

    @property
    def digest_of_all(self) -> str:
        """Names the text and its variants together."""
        texts = [self.text, *(part for pair in sorted(self.variants.items()) for part in pair)]
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


class Perspective(Protocol):
    """One way of looking at a reply. `kind` is its role in the reward, `reads` the section it judges.

    `text` is the raw section: `question` sanitises it, so that no caller can forget to. `fence` comes
    from `guard.make_fence`.
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
    def rubric(self) -> Rubric: ...

    def question(self, scenario: Scenario, text: str, fence: str) -> Question: ...


@dataclass(frozen=True)
class WithRubric:
    """What every built-in perspective is built with: its rubric and the cap on what it reads."""

    rubric: Rubric
    max_chars: int = DEFAULT_MAX_CHARS

    def chat(self, scenario: Scenario, setting: str, text: str, fence: str, task: str) -> tuple[Message, ...]:
        """Rubric; scenario; the fenced text; and the task once more, because the text came in between."""
        guarded = fenced(sanitise(text, self.max_chars, fence), fence)
        rubric = self.rubric.of(scenario.language)
        return Message("system", rubric), Message("user", f"{setting}\n\n{guarded}\n\n{task}")


def seen_from_outside(scenario: Scenario, what_follows: str) -> str:
    """The scenario for a judge who is not the seeker; the text to judge comes next."""
    return (
        f"The seeker: {scenario.persona}\n"
        f"The situation: {scenario.situation}\n"
        f"The seeker said: {scenario.query}\n\n"
        f"{what_follows}"
    )


def load_rubric(name: str, path: str | Path | None = None) -> Rubric:
    """The rubric at `path` with its variants, or the built-in one of the perspective `name`.

    The variants of `warm.md` are the files `warm.<language>.md` beside it, such as `warm.pt-br.md`.
    """
    key = f"judges.pools.{name}.rubric"
    folder = Path(__file__).parent / "rubrics" if path is None else Path(path).expanduser().parent
    file = folder / f"{name}.md" if path is None else Path(path).expanduser()
    variants = {
        variant.name[len(file.stem) + 1 : -len(".md")].lower(): _read_rubric(key, variant)
        for variant in sorted(folder.glob(f"{glob.escape(file.stem)}.*.md"))
    }
    return Rubric(_read_rubric(key, file), variants)


def _read_rubric(key: str, source: Path) -> str:
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
