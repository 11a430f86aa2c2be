"""Describe a perspective: whose eyes a judge looks through, which section it reads, and what it is asked.

A perspective is one Markdown file (`perspectives/<name>.md`, or that of `judges.pools.<name>.rubric`), which
a psychologist can change, translate or add without Python. Its front matter has

    kind      empathy, or bystander (a third party, who only ever takes away from the reward)
    reads     analysis or response: the section of an answer that it judges
    scale     the lowest and the highest number; with criteria, those of each of them
    criteria  names of numbers that are asked one by one and summed; none as a rule
    setting   the words before the text, with {persona}, {situation} and {query}
    task      the question after the text
    opening   how the judge's own turn begins, up to its number

and its text is the rubric, the judge's system prompt. A judge calls `perspective.question(...)` and lets a
scoring mode (`modes.py`) put it to a model. The order of the chat serves the prefix cache: the rubric is the
same for every call, the scenario for a whole group, and the text comes last.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from perm_ray.data.documents import Document, fill, read_document
from perm_ray.errors import ConfigError
from perm_ray.judges.asking import Question
from perm_ray.judges.guard import DEFAULT_MAX_CHARS, fenced, sanitise
from perm_ray.types import Message, Scale, Scenario

BUILTIN_FOLDER = Path(__file__).parent / "perspectives"
# The order of the paper, in which tables and charts show them.
BUILTIN_PERSPECTIVES = ("resonation", "expression", "reception", "bystander")

_KEYS = ("kind", "reads", "scale", "criteria", "setting", "task", "opening")


@dataclass(frozen=True)
class Perspective:
    """One way of looking at a reply.

    `kind` is its role in the reward, `reads` the section it judges, `scale` that of its score (of the sum,
    where there are criteria), `rubric` the document with all texts, and `max_chars` the most that a judge
    reads of a section.
    """

    name: str
    kind: Literal["empathy", "bystander"]
    reads: Literal["analysis", "response"]
    number_scale: Scale
    criteria: tuple[str, ...] = ()
    rubric: Document = field(default_factory=lambda: Document({}, ""))
    max_chars: int = DEFAULT_MAX_CHARS

    @property
    def scale(self) -> Scale:
        parts = max(1, len(self.criteria))
        return Scale(parts * self.number_scale.low, parts * self.number_scale.high)

    def question(self, scenario: Scenario, text: str, fence: str) -> Question:
        """Query about a section of an answer.

        Args:
            scenario: The scenario that was answered; its language chooses the variant of the rubric.
            text: The raw section. It is sanitised here, so that no caller can forget to.
            fence: Letters around the text, from `guard.make_fence`.
        """
        document = self.rubric.of(scenario.language)
        guarded = fenced(sanitise(text, self.max_chars, fence), fence)
        values = {"persona": scenario.persona, "situation": scenario.situation, "query": scenario.query}
        setting = fill(str(document.front["setting"]), values)
        messages = (
            Message("system", document.text),
            Message("user", f"{setting}\n\n{guarded}\n\n{document.front['task']}"),
        )
        return Question(messages, str(document.front["opening"]), self.number_scale, self.criteria)


def load_perspective(
    name: str, file: str | Path | None = None, max_chars: int = DEFAULT_MAX_CHARS
) -> Perspective:
    """Read the perspective `name`: from `file`, or the built-in one.

    A file without front matter replaces the rubric of the built-in perspective of that name; a new
    perspective needs all keys.

    Raises:
        ConfigError: There is no such perspective, or a value of its front matter does not fit.
    """
    key = f"judges.pools.{name}.rubric"
    builtin = BUILTIN_FOLDER / f"{name}.md"
    if file is None and not builtin.is_file():
        nearest = difflib.get_close_matches(name, BUILTIN_PERSPECTIVES, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"judges.pools has no built-in perspective {name!r} (there are "
            f"{', '.join(BUILTIN_PERSPECTIVES)}): did you mean {nearest!r}? For "
            f"one of your own, give its Markdown file as {key}."
        )
    defaults = read_document(builtin, key).front if builtin.is_file() else {}
    source = builtin if file is None else Path(file).expanduser()
    document = read_document(source, key, defaults)
    for each in (document, *document.variants.values()):
        _check_front(each.front, key, source)
    front = document.front
    low, high = cast(list[int], front["scale"])
    return Perspective(
        name=name,
        kind=cast(Literal["empathy", "bystander"], front["kind"]),
        reads=cast(Literal["analysis", "response"], front["reads"]),
        number_scale=Scale(low, high),
        criteria=tuple(cast(list[str], front.get("criteria") or ())),
        rubric=document,
        max_chars=max_chars,
    )


def _check_front(front: Mapping[str, object], key: str, source: Path) -> None:
    def is_scale(value: object) -> bool:
        whole = isinstance(value, list) and len(value) == 2 and all(type(end) is int for end in value)
        return whole and 0 <= cast(list[int], value)[0] < cast(list[int], value)[1] <= 100

    criteria = front.get("criteria") or []
    named = isinstance(criteria, list) and all(
        isinstance(c, str) and c.isascii() and c.isalpha() for c in criteria
    )
    checks = {
        "kind": (front.get("kind") in ("empathy", "bystander"), "empathy or bystander"),
        "reads": (front.get("reads") in ("analysis", "response"), "analysis or response"),
        "scale": (is_scale(front.get("scale")), "two whole numbers from 0 to 100, the lower one first"),
        "criteria": (named, "a list of names of one word each"),
        **{
            name: (isinstance(front.get(name), str) and bool(str(front.get(name)).strip()), "a text")
            for name in ("setting", "task", "opening")
        },
    }
    for name, (fits, expected) in checks.items():
        if not fits:
            raise ConfigError(
                f"{key}: the front matter of {str(source)!r} must give {name} as {expected}, found "
                f"{front.get(name)!r}."
            )
    unknown = sorted(front.keys() - set(_KEYS))
    if unknown:
        nearest = difflib.get_close_matches(unknown[0], _KEYS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"{key}: {str(source)!r} has an unknown key {unknown[0]!r}: did you mean {nearest!r}?"
        )
