"""Turn a scenario into a prompt, and split a completion into its analysis and its response.

The driver renders each scenario once, with the policy's own chat template and tokenizer, and the engines
receive token ids. On the way back the answer is split into what the supporter understood and what the
seeker reads.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from perm_ray.data.documents import Document, fill, read_document
from perm_ray.errors import ConfigError, DataError
from perm_ray.types import Message, Prompt, Scenario, Sections

MAX_SHOWN = 20
_DEFAULT_TEMPLATE = Path(__file__).parent / "templates" / "policy.md"


class Renderer(Protocol):
    """Turns a chat into the token ids that the policy reads."""

    def render(self, messages: Sequence[Message], prefix: str = "") -> tuple[int, ...]: ...

    def without_special_tokens(self, text: str) -> str: ...


# ---- the prompt -----------------------------------------------------------------------------


def load_template(path: str | None) -> Document:
    """Read the policy's prompt template: the file `path`, or the built-in one when None.

    Its text is the system prompt; `user` in its front matter is the user's message, with {persona},
    {situation} and {query}. `mine.de.md` beside `mine.md` is the same for scenarios in German.

    Raises:
        ConfigError: The file cannot be read, or its user message does not show the query.
    """
    defaults = read_document(_DEFAULT_TEMPLATE, "prompt.template").front
    if path is None:
        return read_document(_DEFAULT_TEMPLATE, "prompt.template")
    document = read_document(Path(path).expanduser(), "prompt.template", defaults)
    for each in (document, *document.variants.values()):
        user = each.front.get("user")
        if not isinstance(user, str) or "{query}" not in user or set(each.front) != {"user"}:
            raise ConfigError(
                f"prompt.template: the front matter of {path!r} may have one key, user, a text with "
                f"{{query}} in it (and {{persona}} and {{situation}}), found {dict(each.front)!r}."
            )
    return document


def build_messages(scenario: Scenario, template: Document) -> tuple[Message, ...]:
    """Return the system prompt and one user message with persona, situation and query.

    Later turns of the dialogue are not shown: the policy answers the first.
    """
    document = template.of(scenario.language)
    values = {"persona": scenario.persona, "situation": scenario.situation, "query": scenario.query}
    return (Message("system", document.text), Message("user", fill(str(document.front["user"]), values)))


def build_prompts(
    scenarios: Iterable[Scenario], template: Document, prefix: str, renderer: Renderer, max_tokens: int
) -> tuple[Prompt, ...]:
    """Render every scenario as a prompt, in order.

    Special tokens of the policy's tokenizer that are written in a scenario are taken out first, so that no
    row of data can open a turn of its own.

    Args:
        scenarios: The rows of a data set.
        template: From `load_template`.
        prefix: The opening of the assistant's turn, from which the policy goes on.
        renderer: The policy's chat template and tokenizer.
        max_tokens: The longest that a prompt may be, in tokens.

    Raises:
        DataError: Prompts are too long; one error names them all.
    """
    prompts: list[Prompt] = []
    for scenario in scenarios:
        messages = build_messages(_without_special_tokens(scenario, renderer), template)
        prompts.append(Prompt(scenario, messages, prefix, renderer.render(messages, prefix)))
    too_long = [prompt for prompt in prompts if len(prompt.token_ids) > max_tokens]
    if too_long:
        shown = [f"{p.scenario.scenario_id} has {len(p.token_ids)}" for p in too_long[:MAX_SHOWN]]
        if len(too_long) > MAX_SHOWN:
            shown.append(f"and {len(too_long) - MAX_SHOWN} more")
        raise DataError(
            f"A prompt may have {max_tokens} tokens (prompt.max_tokens), but {', '.join(shown)}: "
            f"raise prompt.max_tokens or shorten the scenario."
        )
    return tuple(prompts)


def _without_special_tokens(scenario: Scenario, renderer: Renderer) -> Scenario:
    plain = renderer.without_special_tokens
    turns = tuple(replace(turn, content=plain(turn.content)) for turn in scenario.dialogue)
    return replace(
        scenario, persona=plain(scenario.persona), situation=plain(scenario.situation), dialogue=turns
    )


# ---- the answer -----------------------------------------------------------------------------

_NAME = r"(?P<name>analysis|response)"
_COLON = r"[:：]"
# Possessive quantifiers keep it linear in the line: completions are untrusted text.
_HEADING = re.compile(
    rf"""\s*+ (?: \#{{1,6}}+ \s*+ )?+
    (?: \*\* \s*+ {_NAME} \s*+ (?P<inner>{_COLON})?+ \s*+ \*\* \s*+ (?P<outer>{_COLON})?+
      | {_NAME.replace("name", "plain_name")} \s*+ (?P<plain_colon>{_COLON})?+ )
    (?P<rest>.*)""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


_THOUGHT_END = re.compile(r"</think(?:ing)?>")
_THOUGHT_BEGIN = re.compile(r"<think(?:ing)?>")


def without_thoughts(text: str) -> str | None:
    """Return what a thinking model says after its thoughts; None when it did not come to an end of them.

    A template may have opened the thought in the prompt, so that the text holds only its end.
    """
    *_, spoken = _THOUGHT_END.split(text)
    return None if _THOUGHT_BEGIN.search(spoken) else spoken


def is_empty(text: str) -> bool:
    """Return whether a reader sees nothing said, as of `---` or zero-width characters."""
    kinds = map(unicodedata.category, text)
    return not any(kind[0] in "LN" or kind == "So" for kind in kinds)


def split_sections(text: str) -> Sections:
    """Find the analysis and the response of an answer, after the thoughts of a model that thinks first.

    A heading stands at the start of a line: `Analysis` or `Response` in any case, after one to six
    `#`, within `**`, or bare; a colon may follow. Text on the same line belongs to the section, and is
    allowed only after a colon; a bare word without a colon is a heading only when alone on its line.
    So `# Analysis`, `**Response:** Dear ...`, `response: Dear ...` are headings; `# Analysis of it all`
    and `Response times vary` are not.

    The analysis begins at the first Analysis heading (what stands before it is ignored) and ends at the
    first Response heading after it. The response begins there and ends at the next heading of either
    name, because small models start over; headings repeated with nothing between them count as one, and
    Analysis headings repeated within the analysis are dropped from it. Without an Analysis heading, the
    response begins at the first Response heading; a Response heading that only comes before the analysis
    is none. A section that is missing or empty to a reader (`is_empty`) is None.
    """
    spoken = without_thoughts(text)
    parts = _parts(spoken or "")
    names = [name for name, _ in parts]
    start = names.index("analysis") if "analysis" in names else 0
    end = names.index("response", start) if "response" in names[start:] else len(parts)
    analysis = "\n".join(body for _, body in parts[start:end])
    response = ""
    for name, body in parts[end:]:
        if name != "response" or response:
            break
        response = body.strip()
    return Sections(
        analysis=None if is_empty(analysis) else analysis.strip(),
        response=None if is_empty(response) else response,
    )


def _parts(text: str) -> list[tuple[str, str]]:
    """Return each heading's name with the text up to the next heading."""
    parts: list[tuple[str, list[str]]] = []
    for line in text.split("\n"):
        heading = _heading(line)
        if heading is not None:
            name, rest = heading
            parts.append((name, [rest]))
        elif parts:
            parts[-1][1].append(line)
    return [(name, "\n".join(lines)) for name, lines in parts]


def _heading(line: str) -> tuple[str, str] | None:
    match = _HEADING.fullmatch(line)
    if match is None:
        return None
    colon = match["inner"] or match["outer"] or match["plain_colon"]
    if not colon and match["rest"].strip(" \t\r#"):
        return None
    name = match["name"] or match["plain_name"]
    return name.lower(), match["rest"] if colon else ""
