"""Take the markup of chat templates out of a text that is only to be judged (prompt injection).

`guard.py` removes these markers from every completion. They are looked for in a text's *skeleton*: what
a reader, or a tokeniser that normalises, may take it for. There is no full-width letter in it, no
invisible character, no HTML escape and no look-alike of a Latin letter, and it knows where each of its
characters comes from. What is removed is removed from the text itself; the rest stays as it was written.

Every pattern is linear in the text, and no token holds white space: one that is replaced by a space then
cannot join its surroundings into another.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

# ---- special tokens -------------------------------------------------------------------------

# The names of tokens in angle brackets, of one word: `<name>`, `</name>`, `<name/>`.
_ANGLED = (
    # Begin, end and the like: Llama 2, Mistral, Gemma, Yi, Falcon, T5, BART, InternLM, Baichuan.
    r"s|bos|eos|pad|unk|sep|cls|mask|sop|eop|eo[hast]|eosys|endoftext|startoftext|end_of_text|begin_of_text",
    r"im_(?:start|end|sep)|(?:start|end|begin)_(?:of|header)_\w{1,32}|extra_id_\d{1,4}|unused\d{1,4}",
    r"reserved_\w{1,32}|(?:image|audio)_soft_token|image|audio|video",
    # Thoughts and tools: Qwen, DeepSeek, GLM, Hermes, Granite, Nemotron.
    r"think(?:ing)?|thought|reasoning|scratch_?pad|answer|tools?|tool_\w{1,24}|toolcall|function(?:_\w{1,24})?",
    r"function=\w{1,64}|parameter=\w{1,64}|arg_(?:key|value)|invoke|observation|response_schema",
    # Code: StarCoder, SmolLM, Granite.
    r"fim_\w{1,16}|jupyter_\w{1,16}|issue_\w{1,16}|commit_\w{1,16}|gh_stars|repo_?name|filename|file_sep",
    r"empty_output|\w{1,24}_token",
    # Roles.
    r"(?:system|user|assistant|human|developer|model|bot|role)(?:_\w{1,16})?",
)
# And those in square brackets: Llama 2, Mistral up to v13, ChatGLM, BERT, Gemma.
_SQUARE = (
    r"inst|system_prompt|available_tools|tool_calls|tool_results|tool_content|args|call_id|model_settings",
    r"img|img_break|img_end|audio|begin_audio|transcribe|prefix|middle|suffix|think|control_\d{1,4}",
    r"[gs]?mask|cls|sep|pad|unk|bos|eos|@bos@|system|user|assistant|human",
)
_TOKENS = (
    # Between bars, whatever the name: ChatML, Llama 3 and 4, Phi, Qwen, DeepSeek, GLM, Command-R, Zephyr,
    # Granite, OLMo, Harmony. Then those with one bar (`<|turn>`, `<turn|>`), then a bracket left alone.
    r"<\|[^<>|\n]{0,64}\|>",
    r"<\|\w{1,32}>",
    r"<\w{1,32}\|>",
    r"<\||\|>",
    r"<</?sys>>",
    rf"</?(?:{'|'.join(_ANGLED)})/?>",
    rf"\[/?(?:{'|'.join(_SQUARE)})\]",
    # Falcon and OLMo.
    r">>(?:question|answer|title|abstract|introduction|summary|comment|domain|prefix|middle|suffix)<<",
    r"\|\|\|[a-z_]{4,20}\|\|\|",
    # MiniMax.
    r"\]~!?b\[|\]~b\]|\[e~\[",
)

# ---- roles at the start of a line -----------------------------------------------------------

_SPACE = r"[ \t]*+"  # possessive: it is not tried again with less, which would take quadratic time
_ROLE = (
    r"(?:gpt-?4[ ]correct[ ])?"
    r"(?:system(?:[ ](?:prompt|message))?|(?:user|human)(?:[ ]message)?|assistant|developer"
    r"|ai(?:[ ]assistant)?|chat-?bot|bot)"
    r"|用户|助手|系统|问|答"
)
# Vicuna, Alpaca, Guanaco, OpenChat, Claude 1 and 2, ChatGLM; as a heading, bold, quoted or in brackets too.
_ROLE_LINES = (
    rf"\#{{1,6}}+{_SPACE}(?:instructions?|input|output|response|{_ROLE}){_SPACE}(?::|$)",
    rf"[->*_(\[]{{0,3}}{_SPACE}(?:{_ROLE})[*_)\]]{{0,3}}{_SPACE}:[*_]{{0,3}}",
    rf"\[round{_SPACE}\d{{1,3}}\]",
    r"beginning[ ]of[ ]conversation:",
)
_FLAGS = re.IGNORECASE | re.MULTILINE
_TOKEN = re.compile("|".join(_TOKENS), _FLAGS)
_ROLE_LINE = re.compile(rf"^(?:{_SPACE}(?:{'|'.join(_ROLE_LINES)}))+", _FLAGS)

# ---- taking them out ------------------------------------------------------------------------


def remove_markers(text: str, fence: str = "") -> tuple[str, int]:
    """`text` with a space for each marker (and for the fence, if there is one), and how many there were.

    Tokens before roles: what stands behind a token at the start of a line may be a role. No pass leaves
    anything for another to find, so that removing twice is removing once.
    """
    num_fences = 0
    if fence:
        text, num_fences = _replace(re.compile(re.escape(fence), re.IGNORECASE), text)
    text, num_tokens = _replace(_TOKEN, text)
    text, num_roles = _replace(_ROLE_LINE, text)
    return text, num_fences + num_tokens + num_roles


def is_visible(char: str) -> bool:
    """False for control characters, lone surrogates and format characters (bidi overrides, tags, joiners)."""
    return char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Cs"}


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """A text as it looks; its character i is what `source[starts[i]:ends[i]]` stands for."""

    text: str
    starts: list[int]
    ends: list[int]


def _replace(pattern: re.Pattern[str], text: str) -> tuple[str, int]:
    if text.isascii() and "&" not in text:  # it is its own skeleton
        return pattern.subn(" ", text)
    skeleton = _skeleton(text)
    parts, end = [], 0
    for match in pattern.finditer(skeleton.text):
        parts.append(text[end : skeleton.starts[match.start()]])
        end = skeleton.ends[match.end() - 1]
    return " ".join([*parts, text[end:]]), len(parts)


# A character written out for HTML, its `&` perhaps escaped as well, and again.
_ESCAPE = re.compile(
    r"&(?:(?:amp|\#0{0,4}38|\#x0{0,4}26);)*"
    r"(?:(?P<code>\#[0-9]{1,7}|\#x[0-9a-f]{1,6}|[a-z]{2,8});|(?P<bare>[lg]t))",
    re.IGNORECASE,
)
# Cyrillic letters that look like those of the role names, and bars that look like a bar.
_LOOK_ALIKES = str.maketrans("аеорсуіѕһԁАЕОРСУІЅНВТМ│∣ǀ❘⏐∕", "aeopcyishdaeopcyishbtm|||||/")
# They have no look of their own but are no format characters: fillers, variation selectors, a joiner.
_BLANKS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def _skeleton(text: str) -> _Skeleton:
    chars: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    position = 0
    while position < len(text):
        char, end = text[position], position + 1
        if char == "&" and (escape := _ESCAPE.match(text, position)):
            char, end = _unescaped(escape), escape.end()
        for each in char if char.isascii() else _looks(char):
            chars.append(each)
            starts.append(position)
            ends.append(end)
        position = end
    return _Skeleton("".join(chars), starts, ends)


def _unescaped(escape: re.Match[str]) -> str:
    return html.unescape(f"&{escape['code'] or escape['bare']};")


@lru_cache(maxsize=8192)
def _looks(text: str) -> str:
    """Return what is seen of a character (or of what an escape stands for): nothing of an invisible one."""
    seen = "".join(char for char in text if is_visible(char) and not _BLANKS.match(char))
    return unicodedata.normalize("NFKC", seen).translate(_LOOK_ALIKES)
