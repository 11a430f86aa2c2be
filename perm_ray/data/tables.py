"""Read rows of other people's files, JSON lines, with every problem listed by file, line and field.

Every reader of JSON lines goes through here: scenarios, texts to judge, labels, probes. They note what is
wrong and read on, and `Problems.settle` then raises one error that lists it all.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from perm_ray.errors import DataError
from perm_ray.types import Scale

MAX_SHOWN = 20


@dataclass(slots=True)
class Problems:
    """The problems of the files read so far."""

    _lines: list[str] = field(default_factory=list)

    def note(self, file: Path, line: int, where: str, expected: str, found: str) -> None:
        """Line 0 is the file as a whole."""
        place = file.name + (f", line {line}" if line else "") + (f", field {where}" if where else "")
        self._lines.append(f"  {place}: expected {expected}, found {found}")

    def settle(self, source: Path) -> None:
        """Raises `DataError` if there is any problem (at most 20 are shown)."""
        if not self._lines:
            return
        count = f"{len(self._lines)} {'problem' if len(self._lines) == 1 else 'problems'}"
        shown = self._lines[:MAX_SHOWN]
        if len(self._lines) > MAX_SHOWN:
            shown = [*shown, f"  and {len(self._lines) - MAX_SHOWN} more"]
        text = "\n".join([f"{source} has {count}; mend it and start again:", *shown])
        raise DataError(text.encode("utf-8", "replace").decode("utf-8"))


@dataclass(slots=True)
class Row:
    """One row while it is read; a value that turns out wrong is noted and comes back empty."""

    file: Path
    line: int
    data: dict[str, object]
    problems: Problems = field(repr=False)

    def complain(self, where: str, expected: str, found: object) -> None:
        self.problems.note(self.file, self.line, where, expected, show(found))

    def check_unique(self, name: str, lines: dict[str, int]) -> None:
        """Note an id that an earlier row has; `lines` has the line of each id so far."""
        earlier = lines.setdefault(name, self.line)
        if earlier != self.line:
            self.complain("id", "an id of its own", f"{show(name)}, which line {earlier} has too")

    def text(self, where: str) -> str:
        """Return a field that must be a text with something in it."""
        return self.as_text(where, self.data.get(where))

    def as_text(self, where: str, value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            self.complain(where, "a text", value)
            return ""
        if any("\ud800" <= char <= "\udfff" for char in value):  # no UTF-8, no tokens
            self.complain(where, "Unicode text", "half of a surrogate pair (a broken \\u escape)")
            return ""
        return value.strip()

    def optional_text(self, where: str) -> str | None:
        """Return a field that may be missing, null or blank."""
        value = self.data.get(where)
        return None if value is None or (isinstance(value, str) and not value.strip()) else self.text(where)

    def rating(self, where: str, value: object, scale: Scale) -> float | None:
        """Return a number on `scale`, also one written as text; None where it is null or blank (no
        rating)."""
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        number = math.nan
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = math.nan
        if not scale.low <= number <= scale.high:
            self.complain(where, f"a number from {scale.low} to {scale.high}", value)
            return None
        return number


def json_rows(path: Path, problems: Problems) -> Iterator[Row]:
    """Yield each line that is a JSON object; the others become problems. Blank lines are skipped."""
    # Lines end at "\n" only: other line separators are allowed within JSON strings.
    for number, raw in enumerate(_read(path).split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            value = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            problems.note(
                path, number, "", "UTF-8 text", f"byte 0x{raw[error.start]:02x} at byte {error.start + 1}"
            )
        except (ValueError, RecursionError) as error:
            problems.note(path, number, "", "one JSON object", f"bad JSON ({error})")
        else:
            if isinstance(value, dict):
                yield Row(path, number, value, problems)
            else:
                problems.note(path, number, "", "one JSON object", "null" if value is None else show(value))


def show(value: object) -> str:
    """Return a value as a message shows it: short, several words as they stand; "nothing" for none."""
    if value is None:
        return "nothing"
    in_words = isinstance(value, str) and " " in value.strip()
    text = str(value) if in_words else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise DataError(f"{path} is a folder: give the path of one file.")
    try:
        return path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}: check the path.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
