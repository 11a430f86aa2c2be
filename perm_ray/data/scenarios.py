"""Reads data sets: JSONL rows become `Scenario`s, or one error that lists everything wrong.

The first thing a run does with its data, before anything heavy starts: whoever wrote the file hears
of all its bad lines at once, each by line number and field. The two data sets that come with the
library are `builtin:train` and `builtin:heldout`.

One row is one JSON object on one line::

    {"id": "a-1", "persona": {"identity": "Noor, 75, ..."}, "scenario": "...",
     "dialogue": [{"role": "seeker", "content": "..."}], "language": "en", "culture": "Dutch"}

`persona` is a string, or an object of which only `identity` is used (other keys may be there and are
not read). `dialogue` begins with the seeker; a turn that is a plain string is the seeker's. `id`,
`language` and `culture` may be left out or null. Space around a text is not part of it.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perm_ray.errors import DataError
from perm_ray.types import Scenario, Turn

BUILTIN_PREFIX = "builtin:"
FIELDS = ("persona", "scenario", "dialogue", "id", "language", "culture")
TURN_FIELDS = ("role", "content")
ROLES = ("seeker", "supporter")
MAX_SHOWN = 20

_BUILTIN_DIR = Path(__file__).parent / "sets"
_BUILTIN_NAMES = tuple(f"{BUILTIN_PREFIX}{stem}" for stem in ("train", "heldout"))


def load_scenarios(source: str) -> tuple[Scenario, ...]:
    """The scenarios of `builtin:train`, `builtin:heldout` or a JSONL file, in file order.

    A row without an id is called `<file stem>:<line number>`. Blank lines are skipped. Raises one
    `DataError` that names every bad line (at most 20 are shown).
    """
    path = _resolve(source)
    problems: list[_Problem] = []
    rows = tuple(_rows(_read(path), problems))
    scenarios = tuple(_scenario(row, path.stem) for row in rows)
    _check_unique(zip((row.line for row in rows), scenarios, strict=True), problems)
    if problems:
        raise DataError(_report(path, problems))
    if not scenarios:
        raise DataError(f"{path} has no scenarios: give a JSONL file with at least one row.")
    return scenarios


def scenario_digest(scenarios: Iterable[Scenario]) -> str:
    """The sha256 of what the scenarios say, in order, for a run's records.

    It depends on the content alone: not on the file's name, spacing or order of keys. The order of
    the rows does count, because a sampler's cursor is a position in it.
    """
    digest = hashlib.sha256()
    for s in scenarios:
        dialogue = [[turn.role, turn.content] for turn in s.dialogue]
        row = [s.scenario_id, s.persona, s.situation, dialogue, s.language, s.culture]
        digest.update(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


# ---- from a source to lines -----------------------------------------------------------------


def _resolve(source: str) -> Path:
    if source.startswith(BUILTIN_PREFIX):
        if source not in _BUILTIN_NAMES:
            known = " and ".join(_BUILTIN_NAMES)
            raise DataError(f"there is no built-in data set {source!r}: the names are {known}.")
        return _BUILTIN_DIR / f"{source.removeprefix(BUILTIN_PREFIX)}.jsonl"
    return Path(source).expanduser()


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise DataError(f"{path} is a folder: give the path of one JSONL file.")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        names = " or ".join(_BUILTIN_NAMES)
        raise DataError(f"there is no data file {path}: give a JSONL file, or {names}.") from None
    except OSError as error:
        raise DataError(f"the data file {path} cannot be read: {error.strerror}.") from error


# ---- from lines to rows ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Problem:
    line: int
    where: str
    text: str


@dataclass(slots=True)
class _Row:
    """One line while it is read; texts that turn out wrong are noted and come back empty."""

    line: int
    data: dict[str, object]
    problems: list[_Problem] = field(repr=False)

    def complain(self, where: str, expected: str, found: str) -> None:
        self.problems.append(_Problem(self.line, where, f"expected {expected}, found {found}"))

    def text(self, where: str, value: object, expected: str = "a non-empty string") -> str:
        if not isinstance(value, str) or not value.strip():
            self.complain(where, expected, _show(value))
            return ""
        if any("\ud800" <= char <= "\udfff" for char in value):  # no UTF-8, no tokens
            self.complain(where, "Unicode text", "half of a surrogate pair (a broken \\u escape)")
            return ""
        return value.strip()

    def optional(self, name: str) -> str | None:
        value = self.data.get(name)
        return None if value is None else self.text(name, value)


def _rows(data: bytes, problems: list[_Problem]) -> Iterable[_Row]:
    """Each line that is a JSON object; the others become problems."""
    # Lines end at "\n" only: other line separators are allowed within JSON strings.
    for number, raw in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            value = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            found = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1}"
            problems.append(_Problem(number, "", f"expected UTF-8 text, found {found}"))
        except json.JSONDecodeError as error:
            found = f"{error.msg} at column {error.colno}"
            problems.append(_Problem(number, "", f"expected one JSON object, found bad JSON: {found}"))
        except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists in lists
            problems.append(_Problem(number, "", "expected one JSON object, found JSON no row can have"))
        else:
            if isinstance(value, dict):
                yield _Row(number, value, problems)
            else:
                text = f"expected one JSON object, found {_show(value)}"
                problems.append(_Problem(number, "", text))


# ---- from rows to scenarios -----------------------------------------------------------------


def _scenario(row: _Row, stem: str) -> Scenario:
    _check_names(row, "", row.data, FIELDS)
    return Scenario(
        scenario_id=row.optional("id") or f"{stem}:{row.line}",
        persona=_persona(row),
        situation=row.text("scenario", row.data.get("scenario", _MISSING)),
        dialogue=_dialogue(row),
        language=row.optional("language"),
        culture=row.optional("culture"),
    )


def _persona(row: _Row) -> str:
    value = row.data.get("persona", _MISSING)
    if isinstance(value, dict):
        return row.text("persona.identity", value.get("identity", _MISSING))
    return row.text("persona", value, 'a non-empty string, or an object with "identity"')


def _dialogue(row: _Row) -> tuple[Turn, ...]:
    value = row.data.get("dialogue", _MISSING)
    if not isinstance(value, list) or not value:
        row.complain("dialogue", "a non-empty list of turns", _show(value))
        return ()
    turns = tuple(_turn(row, f"dialogue[{index}]", turn) for index, turn in enumerate(value))
    if turns[0].role == "supporter":
        row.complain("dialogue[0].role", "the seeker to speak first", '"supporter"')
    return turns


def _turn(row: _Row, where: str, value: object) -> Turn:
    if not isinstance(value, dict):
        expected = 'a non-empty string, or an object with "role" and "content"'
        return Turn("seeker", row.text(where, value, expected))
    _check_names(row, f"{where}.", value, TURN_FIELDS)
    role = value.get("role", _MISSING)
    if role not in ROLES:
        row.complain(f"{where}.role", '"seeker" or "supporter"', _show(role))
        role = "seeker"  # the line is refused anyway; reading on finds its other problems
    return Turn(str(role), row.text(f"{where}.content", value.get("content", _MISSING)))


def _check_names(row: _Row, where: str, data: dict[str, object], known: Sequence[str]) -> None:
    for name in data:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1)
            expected = f'"{near[0]}"' if near else f"only {', '.join(known)}"
            row.complain(where + _clip(name), expected, "an unknown field")


def _check_unique(numbered: Iterable[tuple[int, Scenario]], problems: list[_Problem]) -> None:
    first: dict[str, int] = {}
    for line, scenario in numbered:
        earlier = first.setdefault(scenario.scenario_id, line)
        if earlier != line:
            found = f"{_show(scenario.scenario_id)}, which line {earlier} has too"
            problems.append(_Problem(line, "id", f"expected an id of its own, found {found}"))


# ---- what people read -----------------------------------------------------------------------


class _Missing:
    """Stands for a field that is not there (null is something else)."""


_MISSING = _Missing()


def _clip(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _show(value: object) -> str:
    if isinstance(value, _Missing):
        return "nothing"
    return _clip(json.dumps(value, ensure_ascii=False))


def _report(path: Path, problems: list[_Problem]) -> str:
    problems = sorted(problems, key=lambda problem: problem.line)  # stable: fields keep their order
    one = len(problems) == 1
    lines = [f"{path} has {len(problems)} {'problem' if one else 'problems'}; mend the file and start again:"]
    for problem in problems[:MAX_SHOWN]:
        where = f", field {problem.where}" if problem.where else ""
        lines.append(f"  line {problem.line}{where}: {problem.text}")
    if len(problems) > MAX_SHOWN:
        lines.append(f"  and {len(problems) - MAX_SHOWN} more")
    # A broken \u escape may be in a name or a value: the message must still print.
    return "\n".join(lines).encode("utf-8", "replace").decode("utf-8")
