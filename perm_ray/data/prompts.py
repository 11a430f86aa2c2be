"""A scenario becomes a prompt; a completion falls into its analysis and its response.

Between the data and the policy: the driver renders each scenario once, with the policy's own chat
template and tokenizer, and the engines receive token ids. On the way back the answer is split into
what the supporter understood and what the seeker reads. Only the light `tokenizers` and `jinja2` are
imported here, so that a driver can check every prompt before anything heavy starts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, Protocol

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from perm_ray.errors import ConfigError, DataError, ModelError
from perm_ray.types import Message, Prompt, Scenario, Sections

MAX_SHOWN = 20
_DEFAULT_TEMPLATE = Path(__file__).parent / "templates" / "policy.md"


class Renderer(Protocol):
    """Turns a chat into the token ids that the policy reads."""

    def render(self, messages: Sequence[Message], prefix: str = "") -> tuple[int, ...]: ...


# ---- the prompt -----------------------------------------------------------------------------


def load_template(path: str | None) -> str:
    """The system prompt: the text of the file `path`, or the library's own when None."""
    source = _DEFAULT_TEMPLATE if path is None else Path(path).expanduser()
    try:
        text = source.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"prompt.template must be a text file that can be read, found {path!r} ({why}): "
            f"correct the path, or leave it null for the default."
        ) from error
    if not text:
        raise ConfigError(
            f"prompt.template must be a file with text, found {path!r}, which is empty: "
            f"write the system prompt into it, or leave it null for the default."
        )
    return text


def build_messages(scenario: Scenario, system: str) -> tuple[Message, ...]:
    """The system prompt and one user message: persona, situation and the query.

    Later turns of the dialogue are not shown: the policy answers the first.
    """
    lines = (
        f"Persona: {scenario.persona}",
        f"Situation: {scenario.situation}",
        f"Message: {scenario.query}",
    )
    return (Message("system", system), Message("user", "\n".join(lines)))


def build_prompt(scenario: Scenario, system: str, prefix: str, renderer: Renderer, max_tokens: int) -> Prompt:
    """The scenario as token ids; more than `max_tokens` of them is a `DataError`."""
    return build_prompts((scenario,), system, prefix, renderer, max_tokens)[0]


def build_prompts(
    scenarios: Iterable[Scenario], system: str, prefix: str, renderer: Renderer, max_tokens: int
) -> tuple[Prompt, ...]:
    """Every scenario as a prompt, in order; one `DataError` names all that are too long.

    `prefix` opens the assistant's turn: the policy goes on from it.
    """
    prompts: list[Prompt] = []
    for scenario in scenarios:
        messages = build_messages(scenario, system)
        prompts.append(Prompt(scenario, messages, prefix, renderer.render(messages, prefix)))
    too_long = [prompt for prompt in prompts if len(prompt.token_ids) > max_tokens]
    if too_long:
        shown = [f"{p.scenario.scenario_id} has {len(p.token_ids)}" for p in too_long[:MAX_SHOWN]]
        if len(too_long) > MAX_SHOWN:
            shown.append(f"and {len(too_long) - MAX_SHOWN} more")
        raise DataError(
            f"a prompt may have {max_tokens} tokens (prompt.max_tokens), but {', '.join(shown)}: "
            f"raise prompt.max_tokens or shorten the scenario."
        )
    return tuple(prompts)


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


def split_sections(text: str) -> Sections:
    """Find the analysis and the response of an answer.

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
    is none. A section that is missing or blank is None.
    """
    parts = _parts(text)
    names = [name for name, _ in parts]
    start = names.index("analysis") if "analysis" in names else 0
    end = names.index("response", start) if "response" in names[start:] else len(parts)
    analysis = "\n".join(body for _, body in parts[start:end])
    response = ""
    for name, body in parts[end:]:
        if name != "response" or response:
            break
        response = body.strip()
    return Sections(analysis=analysis.strip() or None, response=response or None)


def _parts(text: str) -> list[tuple[str, str]]:
    """Each heading's name with the text up to the next heading."""
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


# ---- the policy's chat template and tokenizer -----------------------------------------------


class ChatRenderer:
    """Renders chats as a model's own template and tokenizer have it, without transformers.

    Reads `tokenizer.json`, `tokenizer_config.json` and, when it is there, `chat_template.jinja` of the
    folder `model_dir`. Gives the ids that `apply_chat_template(..., add_generation_prompt=True)` gives.
    """

    def __init__(self, model_dir: Path) -> None:
        self._model_dir = model_dir
        config = _read_config(model_dir)
        self._tokenizer = _read_tokenizer(model_dir)
        self._special_tokens = _special_tokens(config)
        added = self._tokenizer.get_added_tokens_decoder().values()
        special = sorted((token.content for token in added if token.special), key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, special))) if special else None
        try:
            self._template = _environment().from_string(_chat_template(model_dir, config))
        except jinja2.TemplateError as error:
            raise ModelError(f"the chat template of {model_dir} is not valid Jinja: {error}.") from error

    def render(self, messages: Sequence[Message], prefix: str = "") -> tuple[int, ...]:
        """The chat up to and with the opening of the assistant's turn, then `prefix`."""
        chat = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self._template.render(messages=chat, add_generation_prompt=True, **self._special_tokens)
        except jinja2.TemplateError as error:
            raise ModelError(
                f"the chat template of {self._model_dir} refuses a system and a user message: {error}: "
                f"use a model whose template takes both."
            ) from error
        return self.encode(text + prefix)

    def without_special_tokens(self, text: str) -> str:
        """`text` with a space for each token that the tokeniser treats as special, wherever it is written."""
        while self._special_pattern and self._special_pattern.search(text):
            text = self._special_pattern.sub(" ", text)  # again: what was taken out may have split another
        return text

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of `text` as it stands; a chat template has written every special token itself."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)


def _read_config(model_dir: Path) -> dict[str, Any]:
    path = model_dir / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"the model folder {model_dir} has no {path.name}: give a complete one.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} must be a JSON object, found {type(config).__name__}.")
    return config


def _read_tokenizer(model_dir: Path) -> Tokenizer:
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"the model folder {model_dir} has no {path.name}: give one with a fast tokenizer.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{path} is not a tokenizer that can be read: {error}.") from error
    # Files may carry both from training; either would change a prompt without a word.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _chat_template(model_dir: Path, config: dict[str, Any]) -> str:
    path = model_dir / "chat_template.jinja"
    template: object = config.get("chat_template")
    if path.is_file():  # wins over the entry, as in transformers
        template = path.read_text(encoding="utf-8")
    elif isinstance(template, list):  # several, by name
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    if not isinstance(template, str):
        raise ModelError(
            f"the model in {model_dir} has no chat template (neither {path.name} nor chat_template in "
            f"tokenizer_config.json): use an instruction-tuned model or add the file."
        )
    return template


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like, as templates name them."""
    tokens: dict[str, str] = {}
    for key, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            tokens[key] = content
    return tokens


def _environment() -> jinja2.Environment:
    """Jinja as transformers sets it up for chat templates; sandboxed, for a template is foreign code."""

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: object, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # Jinja's own escapes HTML

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training on it: here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012, the base class has it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
