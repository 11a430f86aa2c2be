"""Atomic writes: a reader, or the run that resumes, sees the old file or the new one, never half.

The text goes to a temporary file in the same directory, is flushed to the disk and renamed. A file too
large for that is written with its digest (`write_hashed`), by which a reader knows that it is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

Result = TypeVar("Result")

_SAMPLES = 32  # of a weight file, for `fingerprint` ...
_SAMPLE_BYTES = 1 << 16  # ... each of this size
_READ_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file's size in bytes and the sha256 of its content."""

    size: int
    sha256: str


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


def append_row(path: Path, line: str) -> None:
    """Add one line, on the disk before it returns: a row that was paid for is not lost."""
    with path.open("ab") as file:
        file.write(line.encode("utf-8", errors="replace"))
        file.flush()
        os.fsync(file.fileno())


def json_line(value: object) -> str:
    """Return one JSON document with the end of its line."""
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


class _HashingFile:
    """A file open for writing that hashes what passes through: bytes that the disk changes do not agree."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | memoryview) -> int:
        self._sha256.update(data)
        written = self._file.write(data)
        self._size += written
        return written

    def flush(self) -> None:
        self._file.flush()

    @property
    def digest(self) -> FileDigest:
        return FileDigest(self._size, self._sha256.hexdigest())


def write_hashed(path: Path, dump: Callable[[BinaryIO], object]) -> FileDigest:
    """Have `dump(file)` write a file, in one pass from its beginning, and flush it to the disk."""
    with path.open("wb") as file:
        hashing = _HashingFile(file)
        dump(cast(BinaryIO, hashing))  # which has as much of one as writers use
        file.flush()
        os.fsync(file.fileno())
    return hashing.digest


def file_digest(path: Path) -> FileDigest:
    """Read a file and say what it holds."""
    sha256 = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            sha256.update(block)
            size += len(block)
    return FileDigest(size, sha256.hexdigest())


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()


def fingerprint(folder: Path) -> str:
    """Return a digest that tells one model folder from another without reading all of it.

    It covers names, sizes and samples of weights, configuration, tokenizer and chat template. Training
    changes nearly every number, so that a few megabytes out of gigabytes give it away. Only the token ids
    of `generation_config.json` count: its sampling defaults are not used.
    """
    sha256 = hashlib.sha256()
    for path in sorted(
        path for path in folder.iterdir() if path.suffix in (".json", ".jinja", ".safetensors")
    ):
        if path.name == "generation_config.json":
            values = json.loads(path.read_text(encoding="utf-8"))
            ids = {name: value for name, value in values.items() if name.endswith("_token_id")}
            sha256.update(json.dumps(ids, sort_keys=True).encode())
            continue
        size = path.stat().st_size
        sha256.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for offset in range(0, size, max(_SAMPLE_BYTES, size // _SAMPLES)):
                file.seek(offset)
                sha256.update(file.read(_SAMPLE_BYTES))
    return sha256.hexdigest()


def in_background(work: Callable[[], Result], name: str) -> Future[Result]:
    """Begin `work`. Not an executor: those are waited for at the interpreter's end, and a process that is
    told to end must end."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # not lost: `future.result()` raises it where it is waited for
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
