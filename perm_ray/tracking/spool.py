"""What MLflow could not be given yet: one record a line in `mlflow_spool.jsonl` of the run directory.

The tracker appends while a server is away and takes from the front when it is back. A record that was
sent is forgotten at the latest when the process ends; one that is sent twice, after a kill, changes
nothing in MLflow. The file is gone when all of it was sent.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from perm_ray.files import json_line, write_text_atomic

SPOOL_NAME = "mlflow_spool.jsonl"
_MAX_SAMPLE_BYTES = 32 << 20  # samples beyond this size of the file are not kept; metrics always are

Kind = Literal["metrics", "samples", "end"]


@dataclass(frozen=True, slots=True)
class Record:
    """One thing for MLflow, in values that JSON knows. `time_ms` is when it happened."""

    kind: Kind
    step: int
    time_ms: int
    body: Mapping[str, Any]


class Spool:
    """The file. Two threads use it: the driver's, and the one that sends."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / SPOOL_NAME
        self._lock = threading.Lock()
        self._offset = 0  # what is before it was sent
        self._size = 0
        self._pending = 0
        if self.path.is_file():
            text = self.path.read_bytes()
            self._size = text.rfind(b"\n") + 1  # a line that a kill cut short is written over
            self._pending = text.count(b"\n")

    def __len__(self) -> int:
        return self._pending

    def append(self, record: Record) -> bool:
        """Keep a record; False when it is not kept, because of its size or of a disk that is full."""
        with self._lock:
            if record.kind == "samples" and self._size - self._offset > _MAX_SAMPLE_BYTES:
                return False
            line = json_line(asdict(record)).encode("utf-8", errors="replace")
            try:
                with self.path.open("r+b" if self.path.exists() else "wb") as file:
                    file.seek(self._size)
                    file.truncate()
                    file.write(line)
            except OSError:
                return False
            self._size += len(line)
            self._pending += 1
            return True

    def first(self) -> Record | None:
        """The oldest record that was not sent yet."""
        with self._lock:
            while self._pending:
                line = self._line()
                try:
                    return Record(**json.loads(line))
                except (ValueError, TypeError):  # somebody else wrote it
                    self._skip(len(line))
            return None

    def forget_first(self) -> None:
        """The record that `first` gave was sent."""
        with self._lock:
            if self._pending:
                self._skip(len(self._line()))

    def compact(self) -> None:
        """Take what was sent out of the file, and a file with nothing left away."""
        self._rewrite(lambda _: True)

    def keep_until(self, step: int) -> None:
        """A resumed run does the later steps again: forget what there was of them, and the end."""
        self._rewrite(lambda record: record["step"] <= step and record["kind"] != "end")

    def _line(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self._offset)
            return file.readline()

    def _skip(self, length: int) -> None:
        self._offset += length
        self._pending -= 1
        if not self._pending:
            self.path.unlink(missing_ok=True)
            self._offset = self._size = 0

    def _rewrite(self, kept: Callable[[Mapping[str, Any]], bool]) -> None:
        with self._lock:
            if not self.path.is_file():
                return
            lines = self.path.read_bytes()[self._offset : self._size].decode().split("\n")[:-1]
            lines = [line for line in lines if _is_kept(line, kept)]
            text = "".join(f"{line}\n" for line in lines)
            if lines:
                write_text_atomic(self.path, text)
            else:
                self.path.unlink()
            self._offset, self._size, self._pending = 0, len(text.encode()), len(lines)


def _is_kept(line: str, kept: Callable[[Mapping[str, Any]], bool]) -> bool:
    try:
        return kept(json.loads(line))
    except (ValueError, TypeError, KeyError):
        return False
