"""Checkpoints: everything a resume needs, in a folder that is whole or not there.

    checkpoints/step_000004/trainer/       DeepSpeed's state and each rank's random generators
    checkpoints/step_000004/state.json     where the run stood, and what it was made of (`run_state.py`)
    checkpoints/step_000004/manifest.json  size and sha256 of every other file
    checkpoints/latest                     the name of the newest whole one
    checkpoints/heldout.json               the held-out reward after each step that was evaluated

The trainer writes into a folder aside; when all of it is on the disk the folder is renamed, and only then
named in `latest`. Writing goes on behind the loop, one checkpoint at a time. Folders are never written
twice, so that a kill at any instant leaves a `latest` that loads. With several nodes the run directory
must be on a file system that all of them share.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path

from perm_ray.config.schema import CheckpointConfig
from perm_ray.errors import CheckpointError, RunError
from perm_ray.files import (
    FileDigest,
    file_digest,
    in_background,
    sync_folder,
    write_json_atomic,
    write_text_atomic,
)
from perm_ray.runs.run_state import RunState

# Begins to write the trainer's part into a folder; what it returns waits for the end of that.
BeginTrainer = Callable[[Path], Callable[[], Mapping[str, FileDigest]]]

_ASIDE = ".saving-"
_FOLDER_MODE = 0o755  # mkdtemp's 0700 would hide a shared run from the rest of the team


@dataclass(frozen=True, slots=True)
class SaveCost:
    """Seconds that the loop waited for a save, and seconds until it was on the disk."""

    blocked_s: float
    total_s: float


class Checkpoints:
    """The folder `checkpoints/` of a run."""

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self._folder = folder
        self._config = config
        self._writing: Future[SaveCost] | None = None

    @property
    def run_directory(self) -> Path:
        return self._folder.parent

    # ---- saving -----------------------------------------------------------------------------

    def save(self, state: RunState, begin_trainer: BeginTrainer) -> None:
        """Begin a checkpoint, after the one before it is written; `wait` for its end.

        `begin_trainer(folder)` copies the trainer's state and begins to write it into `folder`.
        """
        self.wait()
        began = time.monotonic()
        self._folder.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in self._folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(left_by_a_kill, ignore_errors=True)
        # A new name each time: ranks that outlived a killed driver may still write into the old one.
        aside = Path(tempfile.mkdtemp(dir=self._folder, prefix=f"{_ASIDE}{_name(state.step)}-"))
        os.chmod(aside, _FOLDER_MODE)
        (aside / "trainer").mkdir()
        trainer_written = begin_trainer(aside / "trainer")
        blocked_s = time.monotonic() - began

        def write() -> SaveCost:
            self._commit(state, aside, trainer_written())
            return SaveCost(blocked_s, time.monotonic() - began)

        self._writing = in_background(write, f"checkpoint of step {state.step}")

    def check(self) -> None:
        """Raise `RunError` if the checkpoint being written has failed. Does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> SaveCost | None:
        """Wait until the checkpoint being written is whole, if there is one, and say what it cost."""
        if self._writing is None:
            return None
        writing = self._writing
        error = writing.exception()
        self._writing = None
        if error is not None:
            raise RunError(
                f"A checkpoint could not be written to {self._folder} ({type(error).__name__}: {error}), so "
                "the run stops. The one before it is untouched: mend the cause, then --resume."
            ) from error
        return writing.result()

    def finish(self, note: Callable[[str], None]) -> None:
        """Wait for a checkpoint that is being written after an error; report its failure and go on."""
        try:
            self.wait()
        except RunError as error:
            note(str(error))

    def rate(self, step: int, heldout_reward: float) -> None:
        """Note the held-out reward after `step`, by which `checkpoint.keep_best` chooses."""
        write_json_atomic(self._ratings_file, self._ratings() | {step: heldout_reward})

    def best_step(self) -> int | None:
        """After which step of training the held-out reward was highest so far; the first of equals."""
        rated = {step: reward for step, reward in self._ratings().items() if step > 0}
        return max(sorted(rated), key=rated.__getitem__, default=None)

    def _commit(self, state: RunState, aside: Path, trainer: Mapping[str, FileDigest]) -> None:
        """Make the folder aside a checkpoint, and the newest one."""
        write_json_atomic(aside / "state.json", asdict(state))
        digests = {f"trainer/{name}": digest for name, digest in trainer.items()}
        for path in aside.rglob("*"):
            name = path.relative_to(aside).as_posix()
            if path.is_file() and name not in digests:
                digests[name] = file_digest(path)
        files = {name: asdict(digest) for name, digest in sorted(digests.items())}
        write_json_atomic(aside / "manifest.json", {"files": files})
        sync_folder(aside)
        final = self._free_folder(state.step)
        os.rename(aside, final)
        sync_folder(self._folder)
        write_text_atomic(self._folder / "latest", final.name + "\n")
        self._prune(final)

    def _free_folder(self, step: int) -> Path:
        """step_000004, or step_000004-2 when a save of the same step is there: it may be the latest."""
        names = (_name(step) + (f"-{again}" if again > 1 else "") for again in range(1, 1000))
        return next(folder for name in names if not (folder := self._folder / name).exists())

    def _prune(self, newest: Path) -> None:
        """Remove what neither `keep`, `keep_every` nor `keep_best` keeps."""
        folders = [folder for folder in self._saved() if _step(folder) <= _step(newest)]
        newest_of = {_step(folder): folder for folder in folders}
        steps = sorted(newest_of)
        kept = set(steps[-self._config.keep :])
        if self._config.keep_every:
            kept |= {step for step in steps if step % self._config.keep_every == 0}
        ratings = self._ratings()
        rated = sorted((step for step in steps if step in ratings), key=lambda step: ratings[step])
        kept |= set(rated[max(0, len(rated) - self._config.keep_best) :])
        for folder in folders:
            if folder != newest_of[_step(folder)] or _step(folder) not in kept:
                shutil.rmtree(folder)

    # ---- loading ----------------------------------------------------------------------------

    def load(self, name: str | None = None) -> tuple[RunState, Path]:
        """Return the state of a checkpoint (the latest, or the one of that name) and its trainer folder.

        A checkpoint that is not byte for byte what was written is refused, and the newest whole one
        before it is named.
        """
        folder = self._folder / (name or self._named_latest())
        problem = _damage(folder)
        if problem is None:
            try:
                state = RunState(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
                return state, folder / "trainer"
            except (ValueError, TypeError) as error:
                problem = f"its state.json is not the state of a run as this version writes it ({error})"
        raise CheckpointError(f"The checkpoint {folder} cannot be used: {problem}. {self._advice(folder)}")

    def go_back(self, trainer_folder: Path) -> None:
        """Make a loaded checkpoint the latest: later ones are removed, their steps are run again."""
        chosen = trainer_folder.parent
        write_text_atomic(self._folder / "latest", chosen.name + "\n")
        saved = self._saved()
        for later in saved[saved.index(chosen) + 1 :]:
            shutil.rmtree(later)
        step = _step(chosen)
        ratings = {done: reward for done, reward in self._ratings().items() if done <= step}
        write_json_atomic(self._ratings_file, ratings)

    def latest_name(self) -> str | None:
        """Return the folder of the newest whole checkpoint; None before the first."""
        pointer = self._folder / "latest"
        return pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None

    def _named_latest(self) -> str:
        name = self.latest_name()
        if name is None:
            raise CheckpointError(
                f"{self._folder.parent} has no checkpoint to resume from ({self._folder / 'latest'} is "
                "missing): give the directory of a run that got as far as its first checkpoint."
            )
        return name

    def _advice(self, damaged: Path) -> str:
        for folder in reversed(self._saved()):
            if _order(folder) < _order(damaged) and _damage(folder) is None:
                return f"The one before it is whole: go on from it with --resume {folder}."
        return "There is no whole one before it: start a new run."

    def _saved(self) -> list[Path]:
        """Return every checkpoint's folder, oldest first."""
        return sorted(self._folder.glob("step_*"), key=_order)

    @property
    def _ratings_file(self) -> Path:
        return self._folder / "heldout.json"

    def _ratings(self) -> dict[int, float]:
        """Held-out reward by step."""
        if not self._ratings_file.is_file():
            return {}
        stored = json.loads(self._ratings_file.read_text(encoding="utf-8"))
        return {int(step): reward for step, reward in stored.items()}


def checkpoint_of(path: Path) -> tuple[Path, str | None]:
    """Return the run directory that `--resume` was given, and the name of the checkpoint if it was one."""
    path = path.absolute()
    if path.parent.name == "checkpoints" and path.name.startswith("step_"):
        return path.parent.parent, path.name
    return path, None


def _damage(folder: Path) -> str | None:
    """Return where a checkpoint differs from what was written, in words; None when it is whole."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return "it has no manifest.json, so it is not whole" if folder.is_dir() else "it is not there"
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        expected = {name: FileDigest(**digest) for name, digest in files.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return "its manifest.json is not a list of files and digests"
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != digest.size:
            return f"{name} has {size} bytes, {digest.size} were written"
        if file_digest(path) != digest:
            return f"the content of {name} is not what was written (its sha256 differs)"
    return None


def _name(step: int) -> str:
    return f"step_{step:06d}"


def _order(folder: Path) -> tuple[int, int]:
    """Return a folder's place in time: by step, then by how often that step was saved."""
    _, _, number = folder.name.partition("_")
    step, _, again = number.partition("-")
    return (int(step), int(again or 1)) if step.isdigit() and (again or "1").isdigit() else (-1, 0)


def _step(folder: Path) -> int:
    return _order(folder)[0]
