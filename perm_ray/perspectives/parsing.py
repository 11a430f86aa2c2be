"""The strict reader of answers in words: a text becomes whole numbers on a scale, or a `ScoreError`.

For judges that cannot be held to a form. What is read is what was labelled as a score (`Score: 4`,
`**Rating:** 4/5`, `{"score": 4}`) or an answer that is nothing else (`4`). A number in the reason, off
the scale, between two numbers of it, or one of two different ones is no score. Linear in the text.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence

from perm_ray.perspectives.asking import Scale
from perm_ray.perspectives.scoring import ScoreError

MAX_CHARS = 20_000  # a longer answer is no answer to the question
_LABELS = ("score", "rating", "grade", "final score", "overall score", "final rating", "my score")
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
# What stands after a label: its number, with a denominator, brackets and emphasis around it.
_VALUE = re.compile(
    r"""[ \t]* (?: : | = | \bis\b | \bof\b | \|? ) [ \t*_:|]* [\[(<"']? [ \t*_]*
    (?P<number>[+-]?\d{1,9}(?:[.,]\d{1,9})?) [ \t*_]*
    (?: (?: / | \bout\ of\b ) [ \t*_]* (?P<of>\d{1,9}(?:\.\d{1,9})?) )? [ \t*_]*
    [\])>"']? [ \t*_|]* [.!;,]? [ \t*_|]*
    (?P<rest>[^\n]*)""",
    re.VERBOSE | re.IGNORECASE,
)
_BARE = re.compile(
    r"[\s*_\[(\"'`#]*(?P<number>[+-]?\d{1,9}(?:[.,]\d+)?)[\s*_]*(?:/[\s*_]*(?P<of>\d{1,9}))?[\s*_\])\"'`.!]*"
)
# A number that goes on: a range, a fraction, a date, a percentage.
_GOES_ON = re.compile(r"[ \t]*(?:[-–—~/:%‰°]|to\b|or\b|and\b|\d|[a-z])", re.IGNORECASE)


def parse_score(text: str, scale: Scale) -> int:
    """The one score in `text`. Raises `ScoreError` when there is none, or more than one."""
    text = _plain(text)
    found = _from_json(text, {"score", "rating"})
    if found is None:
        found = _labelled(text, _LABELS, scale)
    if not found and (bare := _BARE.fullmatch(text)):
        found = [_checked(bare["number"], bare["of"], scale)]
    values = {_on_scale(value, scale) for value in found or []}
    if not values:
        raise ScoreError(f"the answer holds no score from {scale.low} to {scale.high}")
    if len(values) > 1:
        raise ScoreError("the answer holds several different scores")
    return values.pop()


def parse_criteria_text(text: str, names: Sequence[str], scale: Scale) -> dict[str, int]:
    """The number of each criterion in `text`, in the order of `names`; other numbers, such as a total,
    are not looked at. Raises `ScoreError` when a criterion has none, or several different ones."""
    text = _plain(text)
    points: dict[str, int] = {}
    for name in names:
        found = _from_json(text, {name.lower()})
        if found is None:
            found = _labelled(text, (name,), scale)
        values = {_on_scale(value, scale) for value in found}
        if len(values) != 1:
            what = "several different numbers" if values else "no number"
            raise ScoreError(f"the answer holds {what} from {scale.low} to {scale.high} for {name}")
        points[name] = values.pop()
    return points


def _plain(text: str) -> str:
    """Full-width digits, colons and brackets as ASCII; an answer of absurd length is refused."""
    if len(text) > MAX_CHARS:
        raise ScoreError(f"the answer is longer than {MAX_CHARS} characters")
    return unicodedata.normalize("NFKC", text).strip()


def _from_json(text: str, names: set[str]) -> list[object] | None:
    """The values under `names` when the answer is a JSON object, bare or fenced; None when it is not."""
    fenced = _FENCE.search(text)
    candidate = (fenced[1] if fenced else text).strip()
    if not candidate.startswith("{"):
        return None
    pairs: list[tuple[str, object]] = []

    def keep(items: list[tuple[str, object]]) -> dict[str, object]:
        pairs.extend(items)  # a key that comes twice, which a dict would hide
        return dict(items)

    try:
        json.loads(candidate, object_pairs_hook=keep)
    except (ValueError, RecursionError):
        return None
    return [value for key, value in pairs if key.lower() in names]


def _labelled(text: str, labels: Sequence[str], scale: Scale) -> list[object]:
    """What stands after each of `labels` at the start of a line, or after a `|` or a heading's marks."""
    names = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    label = re.compile(rf"(?:^|\n)[ \t>#*_|\-\d.)\"']{{0,12}}(?:{names})\b[*_\"']{{0,4}}", re.IGNORECASE)
    found: list[object] = []
    for match in label.finditer(text):
        value = _VALUE.match(text, match.end())
        if value is not None:
            if _GOES_ON.match(value["rest"]):
                raise ScoreError(f"the number after {match[0].strip()!r} goes on")
            found.append(_checked(value["number"], value["of"], scale))
    return found


def _checked(number: str, of: str | None, scale: Scale) -> str:
    if of is not None and float(of) != scale.high:
        raise ScoreError(f"a score out of {of} was given, out of {scale.high} was asked")
    return number


def _on_scale(value: object, scale: Scale) -> int:
    """A whole number of the scale, from a number or its text."""
    if isinstance(value, str) and re.fullmatch(r"[ ]*\d{1,9}[ ]*(/[ ]*\d{1,9}[ ]*)?", value):
        number, _, of = value.partition("/")
        value = int(_checked(number, of.strip() or None, scale))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value not in scale.values:
        raise ScoreError(f"a whole number from {scale.low} to {scale.high} was asked, found another")
    return value
