"""A training batch that a run stopped on, kept so that its one step can be run again alone.

The driver writes it (`failed_step_000012.json` in the run directory), `perm-ray train --replay` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perm_ray.errors import CheckpointError, RunError
from perm_ray.files import write_text_atomic
from perm_ray.trainer.batching import TrainSequence


@dataclass(frozen=True, slots=True)
class FailedStep:
    """The batch of step `step`, why the run stopped on it, and the newest checkpoint of before (its
    folder's name; None: there was none, the base model comes closest). The checkpoint may be of some
    steps earlier."""

    step: int
    reason: str
    checkpoint: str | None
    sequences: Sequence[TrainSequence]

    def write(self, path: Path) -> None:
        """Write it as JSON, with NaN and Infinity as Python reads them: they may be what it is about."""
        write_text_atomic(path, json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, path: Path) -> FailedStep:
        """Raises `CheckpointError` for a file that is not one."""
        if not path.is_file():
            raise CheckpointError(f"--replay expects the file of a failed step, found none at {path}.")
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            sequences = tuple(_sequence(entry) for entry in row["sequences"])
            return cls(row["step"], row["reason"], row["checkpoint"], sequences)
        except (ValueError, TypeError, KeyError, AttributeError, RunError) as error:
            raise CheckpointError(
                f"{path} is not the file of a failed step as this version writes it ({error}): give a "
                "failed_step_*.json of a run directory."
            ) from error


def _sequence(entry: dict[str, Any]) -> TrainSequence:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()
    }
    return TrainSequence(**values)
