"""Read data sets: JSONL rows become `Scenario`s, or one error that lists everything wrong.

The first thing a run does with its data, before anything heavy starts: whoever wrote the file hears
of all its bad lines at once, each by line number and field. The data sets that come with the library are
`builtin:train`, `builtin:heldout` (troubles and joys) and `builtin:daily` (small talk, plans, annoyances).

One row is one JSON object on one line::

    {"id": "a-1", "persona": {"identity": "Noor, 75, ..."}, "scenario": "...",
     "dialogue": [{"role": "seeker", "content": "..."}], "language": "en", "culture": "Dutch"}

`persona` is a string, or an object of which only `identity` is used (other keys may be there and are
not read). `dialogue` begins with the seeker; a turn that is a plain string is the seeker's. `id`,
`language` and `culture` may be left out or null. Space around a text is not part of it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from perm_ray.data.tables import Problems, Row, json_rows
from perm_ray.errors import DataError
from perm_ray.types import Scenario, Turn

BUILTIN_PREFIX = "builtin:"
FIELDS = ("persona", "scenario", "dialogue", "id", "language", "culture")
TURN_FIELDS = ("role", "content")
ROLES = ("seeker", "supporter")

_BUILTIN_DIR = Path(__file__).parent / "sets"
_BUILTIN_NAMES = tuple(f"{BUILTIN_PREFIX}{stem}" for stem in ("train", "heldout", "daily"))


def load_scenarios(source: str) -> tuple[Scenario, ...]:
    """Return the scenarios of a built-in set or a JSONL file, in file order.

    A row without an id is called `<file stem>:<line number>`. Blank lines are skipped.

    Raises:
        DataError: It names every bad line (at most 20 are shown).
    """
    path = _resolve(source)
    problems, lines = Problems(), dict[str, int]()
    scenarios = tuple(_scenario(row, lines) for row in json_rows(path, problems))
    problems.settle(path)
    if not scenarios:
        raise DataError(f"{path} has no scenarios: give a JSONL file with at least one row.")
    return scenarios


def scenario_digest(scenarios: Iterable[Scenario]) -> str:
    """Return the sha256 of what the scenarios say, in order, for a run's records.

    It depends on the content alone: not on the file's name, spacing or order of keys. The order of
    the rows does count, because a sampler's cursor is a position in it.
    """
    digest = hashlib.sha256()
    for s in scenarios:
        dialogue = [[turn.role, turn.content] for turn in s.dialogue]
        row = [s.scenario_id, s.persona, s.situation, dialogue, s.language, s.culture]
        digest.update(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def persona_of(row: Row) -> str:
    """Return the persona of a row: a text, or an object of which `identity` is read."""
    value = row.data.get("persona")
    if isinstance(value, dict):
        return row.as_text("persona.identity", value.get("identity"))
    return row.text("persona")


def _resolve(source: str) -> Path:
    if source.startswith(BUILTIN_PREFIX):
        if source not in _BUILTIN_NAMES:
            known = ", ".join(_BUILTIN_NAMES)
            raise DataError(f"There is no built-in data set {source!r}: the names are {known}.")
        return _BUILTIN_DIR / f"{source.removeprefix(BUILTIN_PREFIX)}.jsonl"
    path = Path(source).expanduser()
    if not path.exists():
        names = ", ".join(_BUILTIN_NAMES)
        raise DataError(f"There is no data file {path}: give a JSONL file, or {names}.")
    return path


def _scenario(row: Row, lines: dict[str, int]) -> Scenario:
    _check_names(row, "", row.data, FIELDS)
    name = row.optional_text("id") or f"{row.file.stem}:{row.line}"
    row.check_unique(name, lines)
    return Scenario(
        scenario_id=name,
        persona=persona_of(row),
        situation=row.text("scenario"),
        dialogue=_dialogue(row),
        language=row.optional_text("language"),
        culture=row.optional_text("culture"),
    )


def _dialogue(row: Row) -> tuple[Turn, ...]:
    value = row.data.get("dialogue")
    if not isinstance(value, list) or not value:
        row.complain("dialogue", "a list of turns that is not empty", value)
        return ()
    turns = tuple(_turn(row, f"dialogue[{index}]", turn) for index, turn in enumerate(value))
    if turns[0].role == "supporter":
        row.complain("dialogue[0].role", "the seeker to speak first", "supporter")
    return turns


def _turn(row: Row, where: str, value: object) -> Turn:
    if not isinstance(value, dict):
        return Turn("seeker", row.as_text(where, value))
    _check_names(row, f"{where}.", value, TURN_FIELDS)
    role = value.get("role")
    if role not in ROLES:
        row.complain(f"{where}.role", '"seeker" or "supporter"', role)
        role = "seeker"  # the line is refused anyway; reading on finds its other problems
    return Turn(str(role), row.as_text(f"{where}.content", value.get("content")))


def _check_names(row: Row, where: str, data: dict[str, object], known: Sequence[str]) -> None:
    for name in data:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1)
            expected = f'"{near[0]}"' if near else f"only {', '.join(known)}"
            row.complain(where + name[:60], expected, "an unknown field")
