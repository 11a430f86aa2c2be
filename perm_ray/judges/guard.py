"""Untrusted text inside a judge prompt: a completion is what the policy wants the judge to believe.

Perspectives pass every completion through `sanitise` and wrap it with `fenced` before a judge sees it.
The fence goes right around the completion, after the scenario, so that the rubric and the scenario
before it stay the same for a whole group and the engine's prefix cache holds them. `removed` counts
what had to be taken out: a policy that learns to write to its judge shows there first.
"""

from __future__ import annotations

import hashlib
import re

from perm_ray.judges.markers import is_visible, remove_markers

DEFAULT_MAX_CHARS = 6000
CUT_MARK = " [... cut]"
_EMPTY = "(empty)"

_BLANK_LINES = re.compile(r"\n[ \t]*\n(?:[ \t]*\n)+")
_LINE_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Format characters that writing needs: joiners of emoji and of Indic and Arabic scripts.
_KEPT_FORMAT = frozenset("\u200c\u200d")


def make_fence(*seed: object) -> str:
    """Return a fence that the policy cannot guess and a repeated run writes again: the hash of `seed`.

    Seeded with the run's seed, the scenario and the text, every call has a fence of its own. Seeded
    without the text, the completions of a group share one, and a weak judge's response to the fence's
    own letters cannot set them apart (`judges.pools.<perspective>.fence` chooses). Letters only,
    because digits in a prompt pull at a judge that is about to say one.
    """
    digest = hashlib.sha256("\x1f".join(map(str, seed)).encode(errors="backslashreplace")).hexdigest()[:10]
    return digest.translate(str.maketrans("0123456789abcdef", "ghijklmnopqrstuv"))


def fenced(text: str, fence: str) -> str:
    """`text` between two lines that bear the fence. The text must have been sanitised with it."""
    return f"[begin {fence}]\n{text or _EMPTY}\n[end {fence}]"


def sanitise(text: str, max_chars: int, fence: str = "") -> str:
    """`text` without control characters, special tokens, role markers and the fence; at most `max_chars`
    characters, cut visibly.

    The words in between stay: a judge should see what was written. Sanitising twice gives the same text.
    """
    text = _plain(text)
    if len(text) > max_chars:
        text = text[: max(0, max_chars - len(CUT_MARK))].rstrip() + CUT_MARK[:max_chars]
    text, _ = remove_markers(text, fence)
    return _BLANK_LINES.sub("\n\n", text).strip()


def removed(text: str, fence: str = "") -> int:
    """Count the role markers, special tokens and fences `sanitise` takes out of the uncut `text`."""
    return remove_markers(_plain(text), fence)[1]


def _plain(text: str) -> str:
    """Return `text` with one kind of line break, without characters that nobody sees or needs."""
    text = _LINE_BREAKS.sub("\n", text)
    return "".join(char for char in text if char in _KEPT_FORMAT or is_visible(char))
