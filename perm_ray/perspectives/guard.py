"""Untrusted text inside a judge prompt: a completion is what the policy wants the judge to believe.

Perspectives pass every completion through `sanitise` and wrap it with `fenced` before a judge sees it.
The fence goes right around the completion, after the scenario, so that the rubric and the scenario
before it stay the same for a whole group and the engine's prefix cache holds them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

DEFAULT_MAX_CHARS = 6000
CUT_MARK = " [... cut]"
_EMPTY = "(empty)"

# Special tokens are exact strings to a tokeniser. Each is replaced by a space, never by nothing: the
# pieces around it then cannot join into another one.
_PIPE_TOKEN = re.compile(r"<[|｜][^<>|｜]{0,64}[|｜]>|<[|｜]|[|｜]>")
_NAMED_TOKEN = re.compile(
    r"</?(?:s|bos|eos|pad|unk|sep|cls|mask|sop|eop|think|tool_call|tool_response|endoftext"
    r"|(?:start|end|begin)_(?:of|header)_\w{1,32}|(?:start|end)_of_turn|extra_id_\d+|reserved_\w{1,32}"
    r"|unused\d+|(?:system|user|assistant|human)(?:_\w{1,16})?)>"
    r"|<</?SYS>>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK|sMASK|MASK|CLS|SEP|PAD|UNK|BOS|EOS)\]",
    re.IGNORECASE,
)
_ROLE_LINE = re.compile(
    r"^(?:[ \t]*(?:"
    r"#{1,6}[ \t]*(?:instructions?|input|output|response|system|user|assistant|human)(?:[ \t]*:|[ \t]*$)"
    r"|[*_]{0,2}(?:system|user|assistant|human)[*_]{0,2}[ \t]*:[*_]{0,2}"
    r"))+",
    re.IGNORECASE | re.MULTILINE,
)
_BLANK_LINES = re.compile(r"\n[ \t]*\n(?:[ \t]*\n)+")
_LINE_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Format characters that writing needs: joiners of emoji and of Indic and Arabic scripts.
_KEPT_FORMAT = frozenset("\u200c\u200d")


def make_fence(*seed: object) -> str:
    """A fence that the policy cannot guess and a repeated run writes again: the hash of `seed`.

    Seed it with the run's seed and the scenario (and step), not with the completion: every completion
    of a group then has the same fence, and a weak judge's response to the fence's own letters cannot
    set them apart. Letters only, because digits in a prompt pull at a judge that is about to say one.
    """
    digest = hashlib.sha256("\x1f".join(map(str, seed)).encode()).hexdigest()[:10]
    return digest.translate(str.maketrans("0123456789abcdef", "ghijklmnopqrstuv"))


def fenced(text: str, fence: str) -> str:
    """`text` between two lines that bear the fence. The text must have been sanitised with it."""
    return f"[begin {fence}]\n{text or _EMPTY}\n[end {fence}]"


def sanitise(text: str, max_chars: int, fence: str = "") -> str:
    """`text` without control characters, special tokens, role markers and the fence; capped, cut visibly.

    The words in between stay: a judge should see what was written. Repeated until nothing changes, so
    that no token hides inside another; sanitising twice gives the same text.
    """
    text = _LINE_BREAKS.sub("\n", text)
    text = "".join(c for c in text if _is_text(c))
    if len(text) > max_chars:
        text = text[: max(0, max_chars - len(CUT_MARK))].rstrip() + CUT_MARK[:max_chars]
    before = None
    while text != before:
        before, text = text, _one_pass(text, fence)
    return text


def _one_pass(text: str, fence: str) -> str:
    if fence:
        text = re.sub(re.escape(fence), " ", text, flags=re.IGNORECASE)
    text = _PIPE_TOKEN.sub(" ", text)
    text = _NAMED_TOKEN.sub(" ", text)
    text = _ROLE_LINE.sub(" ", text)
    return _BLANK_LINES.sub("\n\n", text).strip()


def _is_text(char: str) -> bool:
    """False for control characters, lone surrogates and format characters (bidi overrides, tags)."""
    if char in "\n\t" or char in _KEPT_FORMAT:
        return True
    return unicodedata.category(char) not in {"Cc", "Cf", "Cs"}
