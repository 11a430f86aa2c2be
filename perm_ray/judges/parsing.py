"""The strict reader of answers in words: a text becomes whole numbers on a scale, or a `ScoreError`.

For judges that cannot be held to a form. What is read is what was labelled as a score (`Score: 4`,
`**Rating:** 4/5`, `{"score": 4}`) or an answer that is nothing else (`4`). A number in the reason, off
the scale, between two numbers of it, or one of two different ones is no score. Linear in the text: it
is cleaned first, and then no pattern repeats anything without a small bound.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence

from perm_ray.judges.scoring import ScoreError
from perm_ray.types import Scale

MAX_CHARS = 20_000  # a longer answer is no answer to the question

_SCORE_LABEL = r"(?:(?:the|my|final|overall)\ )?(?:score|rating|grade)"
_LINE_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_FENCE = re.compile(r"```(?:json)?[ \t]{0,8}\n(.*?)```", re.DOTALL | re.IGNORECASE)
_NOT_WORDS = re.compile(r"[^\S\n]+|[*_`]+")  # blanks, and the marks of emphasis
_BLANKS = re.compile(" +")
_CLOSING = {"[": "]", "(": ")", "<": ">", '"': '"', "'": "'", "": ""}
# A number in a cleaned line, with a denominator and brackets around it, and what follows it.
_VALUE = r"""
    (?P<open>[\[(<"']?)\ ?
    (?P<number>[-+−–]?\d{1,9}(?:[.,]\d{1,9})?)\ ?
    (?P<close>[\])>"']?)\ ?
    (?:\(?(?:/|out\ of\b)\ ?(?P<of>\d{1,9})\)?)?
    (?P<close_after>[\])>"']?)\ ?
    [.!;,}]{0,2}\ ?(?P<cell>\|?)\ ?(?P<rest>.*)
"""
_BARE = re.compile(_VALUE, re.VERBOSE | re.IGNORECASE)


def parse_score(text: str, scale: Scale) -> int:
    """Return the one score in `text`. Raises `ScoreError` when there is none, or more than one."""
    answer, given = _read(text, ("score", "rating"))
    found = [*given, *_labelled(answer, _SCORE_LABEL, scale)]
    if not found and (bare := _BARE.fullmatch(answer)):
        found = [_whole(bare, scale)]
    return _the_one(found, scale, "the answer")


def parse_criteria_text(text: str, names: Sequence[str], scale: Scale) -> dict[str, int]:
    """Return the number of each criterion in `text`, in the order of `names`; other numbers, such as a total,
    are not looked at. Raises `ScoreError` when a criterion has none, or several different ones."""
    points: dict[str, int] = {}
    for name in names:
        answer, given = _read(text, (name.lower(),))
        found = [*given, *_labelled(answer, re.escape(name), scale)]
        points[name] = _the_one(found, scale, f"the answer, for {name},")
    return points


def _read(text: str, keys: Sequence[str]) -> tuple[str, list[object]]:
    """Return the words of an answer, cleaned, and the values under `keys` of the JSON objects in it (one that
    is the whole answer, or fenced ones)."""
    if len(text) > MAX_CHARS:
        raise ScoreError(f"the answer is longer than {MAX_CHARS} characters")
    text = _LINE_BREAKS.sub("\n", unicodedata.normalize("NFKC", text)).strip()  # full-width digits as ASCII
    found: list[object] = []
    for fenced in _FENCE.findall(text):
        found += _from_json(fenced, keys) or []
    whole = _from_json(text, keys)
    if whole is not None:
        return "", [*found, *whole]
    lines = _BLANKS.sub(" ", _NOT_WORDS.sub(" ", _FENCE.sub(_unless_json, text))).split("\n")
    return "\n".join(line.strip() for line in lines).strip(), found


def _unless_json(fence: re.Match[str]) -> str:
    return "" if _from_json(fence[1], ()) is not None else fence[1]


def _from_json(text: str, keys: Sequence[str]) -> list[object] | None:
    """Return the values under `keys` when `text` is a JSON object; None when it is not."""
    if not text.lstrip().startswith("{"):
        return None
    pairs: list[tuple[str, object]] = []

    def keep(items: list[tuple[str, object]]) -> dict[str, object]:
        pairs.extend(items)  # a key that comes twice, which a dict would hide
        return dict(items)

    try:
        json.loads(text, object_pairs_hook=keep)
    except (ValueError, RecursionError):
        return None
    return [value for key, value in pairs if key.lower() in keys]


def _labelled(answer: str, label: str, scale: Scale) -> list[int]:
    """Return the numbers of the lines that begin with `label` (a pattern), after a list's or table's
    marks."""
    pattern = re.compile(
        rf"""(?:[>#|"'-]|\d{{1,2}}[.)]|\ ){{0,6}} {label}\b ["']?
        (?:\ ?\((?P<low>\d{{1,3}})\ ?(?:[-–]|to)\ ?(?P<high>\d{{1,3}})\))?
        \ ?(?:[:=|]|is\b|of\b|)\ ?:?\ ? {_VALUE}""",
        re.VERBOSE | re.IGNORECASE,
    )
    matches = [match for line in answer.split("\n") if (match := pattern.match(line))]
    for match in matches:
        if match["low"] and (int(match["low"]), int(match["high"])) != (scale.low, scale.high):
            raise ScoreError(f"a score from {match['low']} to {match['high']} was given")
    return [_whole(match, scale) for match in matches]


def _whole(value: re.Match[str], scale: Scale) -> int:
    """Return the number of a match of `_VALUE`, when nothing about it makes it another one."""
    rest = value["rest"]
    aside = rest.startswith("(") or value["cell"]  # a remark, or the next column of a table
    if rest and (not aside or re.search(r"\d", rest)):
        raise ScoreError("the number is not the end of its line")
    if re.match(r"\(? ?(?:/|out of\b)", rest, re.IGNORECASE):  # in words: digits are in the pattern
        raise ScoreError(f"a score out of something else than {scale.high} was given")
    if value["close"] + value["close_after"] != _CLOSING[value["open"]]:
        raise ScoreError("the brackets around the number do not match")
    if value["of"] is not None and int(value["of"]) != scale.high:
        raise ScoreError(f"a score out of {value['of']} was given, out of {scale.high} was asked")
    return _on_scale(value["number"], scale)


def _the_one(found: Sequence[object], scale: Scale, where: str) -> int:
    values = {_on_scale(value, scale) for value in found}
    if len(values) != 1:
        what = "several different numbers" if values else "no number"
        raise ScoreError(f"{where} holds {what} from {scale.low} to {scale.high}")
    return values.pop()


def _on_scale(value: object, scale: Scale) -> int:
    """Return a whole number of the scale, from a number or its text."""
    if isinstance(value, str) and (text := re.fullmatch(r"\s?(\d{1,9})\s?(?:/\s?(\d{1,9})\s?)?", value)):
        value = int(text[1]) if text[2] is None or int(text[2]) == scale.high else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not scale.low <= value <= scale.high:
        raise ScoreError(f"a whole number from {scale.low} to {scale.high} was asked, found another")
    return value
