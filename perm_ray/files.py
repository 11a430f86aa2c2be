"""Atomic writes: a reader, or the run that resumes, sees the old file or the new one, never half.

The text goes to a temporary file in the same directory, is flushed to the disk and renamed.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text. What UTF-8 cannot hold (half a surrogate pair, out of a data file) becomes `?`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8", errors="replace"))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a shared run from the rest of the team
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)  # there only if something above raised


def write_json_atomic(path: Path, value: object) -> None:
    """Write one JSON document, indented for people."""
    text = json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False, indent=2)
    write_text_atomic(path, text + "\n")


def write_jsonl_atomic(path: Path, rows: Iterable[object]) -> None:
    """Write one JSON document a line."""
    write_text_atomic(path, "".join(json_line(row) for row in rows))


def json_line(value: object) -> str:
    return json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False) + "\n"


def jsonable(value: object) -> object:
    """Nested plain values as JSON knows them: a float that is not finite becomes null, a path its text."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def sync_folder(folder: Path) -> None:
    """Have the system write a folder's files, and the folder itself, to the disk."""
    for path in [*sorted(folder.rglob("*")), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
