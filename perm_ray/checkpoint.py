"""Checkpoints: everything a resume needs, in a folder that is whole or not there.

    checkpoints/step_000004/trainer/   DeepSpeed's state and each rank's RNG
    checkpoints/step_000004/state.json step, sampler cursor, what the run was started with
    checkpoints/latest                 the name of the newest whole one

The trainer writes into a folder aside; it is synced, renamed, and only then named in `latest`. With
several nodes the run directory must be on a file system that all of them share.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perm_ray.config.schema import Config
from perm_ray.errors import CheckpointError
from perm_ray.files import sync_folder, write_json_atomic, write_text_atomic


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands after `step` finished steps.

    `wall_time_s` is what was spent so far; `data_digest`, `model` and `num_ranks` are what a resumed
    run must agree on; `before` the held-out rewards from before training.
    """

    step: int
    sampler: Mapping[str, Any]
    data_digest: str
    model: str
    num_ranks: int
    mlflow_run_id: str | None
    wall_time_s: float
    before: Mapping[str, Any]

    @classmethod
    def new(cls, sampler: Mapping[str, Any], data_digest: str, config: Config) -> RunState:
        """A run that has not begun."""
        return cls(
            step=0,
            sampler=sampler,
            data_digest=data_digest,
            model=config.policy.model,
            num_ranks=config.trainer.num_ranks,
            mlflow_run_id=None,
            wall_time_s=0.0,
            before={},
        )


class Checkpoints:
    """The folder `checkpoints/` of a run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, state: RunState, write_trainer: Callable[[Path], None]) -> Path:
        """Write a checkpoint; `write_trainer(folder)` puts the trainer's part into `folder`."""
        name = _name(state.step)
        aside, final = self._folder / f".saving-{name}", self._folder / name
        for left_by_a_kill in self._folder.glob(".saving-*"):
            shutil.rmtree(left_by_a_kill)
        (aside / "trainer").mkdir(parents=True)
        write_trainer(aside / "trainer")
        write_json_atomic(aside / "state.json", asdict(state))
        sync_folder(aside)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(aside, final)
        sync_folder(self._folder)
        write_text_atomic(self._folder / "latest", name + "\n")
        self._prune(final)
        return final

    def latest(self) -> tuple[RunState, Path]:
        """The newest checkpoint's state and the folder of its trainer part."""
        pointer = self._folder / "latest"
        if not pointer.is_file():
            raise CheckpointError(
                f"{self._folder.parent} has no checkpoint to resume from ({pointer} is missing): "
                "give the directory of a run that got as far as its first checkpoint."
            )
        folder = self._folder / pointer.read_text(encoding="utf-8").strip()
        for part in (folder / "state.json", folder / "trainer"):
            if not part.exists():
                raise CheckpointError(f"The checkpoint {folder} is incomplete: it has no {part.name}.")
        try:
            state = RunState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"{folder / 'state.json'} is not the state of a run as this version writes it: {error}."
            ) from error
        return state, folder / "trainer"

    def _prune(self, newest: Path) -> None:
        saved = sorted(self._folder.glob("step_*"))
        for folder in saved[: -self._keep]:
            if folder != newest:
                shutil.rmtree(folder)


def check_agrees(saved: RunState, now: RunState) -> None:
    """Refuse to resume with another data set, model or number of ranks. Raises `CheckpointError`."""
    for what, then, given in (
        ("set of training scenarios", saved.data_digest[:12], now.data_digest[:12]),
        ("policy.model", saved.model, now.model),
        ("trainer.num_ranks", saved.num_ranks, now.num_ranks),
    ):
        if then != given:
            raise CheckpointError(
                f"This checkpoint was made with another {what}: {then} then, {given} now. "
                "Resume with what the run was started with, or start a new run."
            )


def _name(step: int) -> str:
    return f"step_{step:06d}"
