"""Train the same run in several variants and seeds; each is a cell of a table.

A cell is `perm-ray train` in a process of its own, or a job of a Ray cluster, in a run directory of its own:
what is finished is not run again, what was begun is resumed, and a cell that failed is told and does not stop
the others.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import yaml

from perm_ray.cluster.jobs.client import JobsClient
from perm_ray.config.load import load_config
from perm_ray.config.schema import Config
from perm_ray.errors import ConfigError, PermRayError
from perm_ray.runs.directory import RunDirectory
from perm_ray.runs.run_plan import plan_run
from perm_ray.runs.signals import StopSignals

_KEYS = ("base", "seeds", "variants")
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant with one seed; `overrides` are those of the variant."""

    variant: str
    seed: int
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the name of its run."""
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', self.variant).strip('-.')}-seed{self.seed}"


@dataclass(frozen=True, slots=True)
class Ablation:
    """A table of cells over one base configuration; `common` are overrides of every cell."""

    base: str
    common: tuple[str, ...]
    cells: tuple[Cell, ...]

    def config(self) -> Config:
        """Return the configuration whose judges grade every policy."""
        return load_config(self.base, self.common)

    def overrides(self, cell: Cell, folder: Path) -> list[str]:
        """Return what `perm-ray train` is told for a cell."""
        place = [f"run.dir={folder / 'cells'}", f"run.name={cell.name}", f"run.seed={cell.seed}"]
        return [*self.common, *cell.overrides, *place]


def read_ablation(file: Path, common: Sequence[str]) -> Ablation:
    """Read `base`, `seeds` and `variants` (a name and its overrides, each) from a YAML file.

    Raises:
        ConfigError: Something in it cannot be used as it is.
    """
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"{file} cannot be read as YAML ({why}): check the path.") from error
    if not isinstance(given, dict) or set(given) - set(_KEYS) or "variants" not in given:
        raise ConfigError(f"{file} must have the keys {', '.join(_KEYS)}, found {_shown(given)}.")
    seeds, variants = given.get("seeds", [42]), given["variants"]
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ConfigError(f"seeds in {file} must be a list of whole numbers, found {seeds!r}.")
    if not isinstance(variants, dict) or not variants:
        raise ConfigError(f"variants in {file} must be names with lists of overrides, found {variants!r}.")
    for name, overrides in variants.items():
        if not isinstance(overrides, list) or not all(isinstance(each, str) for each in overrides):
            raise ConfigError(f"{name} in {file} must be a list of overrides (a.b=c), found {overrides!r}.")
    return _table(str(given.get("base", "local")), common, variants, seeds)


def grid(base: str, axes: Sequence[str], seeds: Sequence[int], common: Sequence[str]) -> Ablation:
    """Return the cells of every combination of values.

    Args:
        base: A configuration file, or the name of a shipped one.
        axes: Texts such as `trainer.lr=1e-6,1e-5`.
        seeds: One run of each combination for each.
        common: Overrides of every cell.

    Raises:
        ConfigError: An axis is no key with values.
    """
    choices = []
    for axis in axes:
        key, _, values = axis.partition("=")
        if not key or not values:
            raise ConfigError(f"--grid expects a.b=c,d, found {axis!r}.")
        choices.append([f"{key}={value.strip()}" for value in values.split(",")])
    variants = {" ".join(combination): list(combination) for combination in itertools.product(*choices)}
    return _table(base, common, variants, seeds)


def check_cells(ablation: Ablation, folder: Path) -> None:
    """Refuse an ablation any of whose cells could not start. Raises `ConfigError`."""
    names = [cell.name for cell in ablation.cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"Variants and seeds must give each run a name of its own, found two {twice}.")
    for cell in ablation.cells:
        begun = RunDirectory(folder / "cells" / cell.name)
        try:
            config = load_config(ablation.base, ablation.overrides(cell, folder))
            plan_run(config)
            then = load_config(begun.config_file) if begun.config_file.is_file() else config
            same = replace(then, ray=config.ray) == config  # a job's cluster is where it runs, no setting
        except PermRayError as error:
            raise ConfigError(f"{cell.variant}: {error}") from error
        if not same:
            raise ConfigError(
                f"{begun.path} was begun with other settings than {cell.variant} has now: name another "
                "folder with --out."
            )


def run_cells(
    ablation: Ablation,
    folder: Path,
    stop: StopSignals,
    say: Callable[[str], None],
    address: str | None = None,
    at_once: int = 1,
) -> dict[Cell, str]:
    """Run every cell that has not finished, in order.

    Args:
        ablation: The cells.
        folder: Where their runs and logs are; with `address`, on storage that the cluster's nodes share.
        stop: Says when to stop.
        say: Called with a line of text.
        address: A Ray cluster's dashboard, where cells are jobs; None runs them here.
        at_once: Jobs that are in the cluster at a time.

    Returns:
        Why a cell has no policy, for those that failed.

    Raises:
        Interrupted: It was asked to stop; run it again to go on.
    """

    def run(number: int, cell: Cell) -> str:
        """Run one cell; returns why it failed, or an empty text."""
        directory = RunDirectory(folder / "cells" / cell.name)
        where = f"[{number}/{len(ablation.cells)}] {cell.name}"
        if directory.finished:
            say(f"{where}: finished before")
            return ""
        say(where)
        command = _local_command if address is None else partial(_job_command, address)
        with _locked(_log(folder, cell), stop, partial(say, f"{where}: waiting, it still runs")) as log:
            code = 0
            if not directory.finished:
                code = _wait(command(ablation, cell, directory, folder), stop, log)
        if directory.finished:
            return ""
        why = _last_line(_log(folder, cell)) or f"exit code {code}"
        say(f"{where}: failed ({why})")
        return why

    with ThreadPoolExecutor(at_once) as pool:
        runs = {cell: pool.submit(run, place, cell) for place, cell in enumerate(ablation.cells, start=1)}
        try:
            found = {cell: each.result() for cell, each in runs.items()}
        finally:
            pool.shutdown(cancel_futures=True)
    return {cell: why for cell, why in found.items() if why}


def policy_of(cell: Cell, folder: Path) -> Path:
    """Return the trained policy of a cell that finished."""
    return RunDirectory(folder / "cells" / cell.name).policy


@contextmanager
def _locked(file: Path, stop: StopSignals, say: Callable[[], None]) -> Iterator[BinaryIO]:
    """Open a cell's log and lock it: a cell whose ablation was killed still runs, and holds the lock."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as log:
        waiting = False
        while not _take(log):
            if not waiting:
                say()
            waiting = True
            stop.check()
            time.sleep(_POLL_S)
        yield log


def _take(log: BinaryIO) -> bool:
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _local_command(ablation: Ablation, cell: Cell, directory: RunDirectory, folder: Path) -> list[str]:
    """Return the `perm-ray train` that runs a cell, from its last checkpoint where there is one."""
    return ["train", *(_resume_option(directory) or _settings(ablation, cell, folder))]


def _job_command(
    address: str, ablation: Ablation, cell: Cell, directory: RunDirectory, folder: Path
) -> list[str]:
    """Return the verb that runs a cell as a job; one that outlived an ablation is only followed."""
    at = ["--address", address]
    if any(job.run == cell.name and not job.ended for job in JobsClient(address).jobs()):
        return ["logs", *at, "--follow", cell.name]
    given = [*_settings(ablation, cell, folder), *_resume_option(directory)]
    return ["submit", *at, "--wait-for-resources", "--follow", *given]


def _settings(ablation: Ablation, cell: Cell, folder: Path) -> list[str]:
    return ["--config", ablation.base, *ablation.overrides(cell, folder)]


def _resume_option(directory: RunDirectory) -> list[str]:
    """Return the option that goes on with a run; none, in a clean directory, where there is no checkpoint."""
    if any((directory.path / "checkpoints").glob("step_*")):
        return ["--resume", str(directory.path)]
    shutil.rmtree(directory.path, ignore_errors=True)
    return []


def _wait(command: Sequence[str], stop: StopSignals, log: BinaryIO) -> int:
    """Run a verb to its end; a signal ends it as well. A job goes on in its cluster."""
    command = [sys.executable, "-m", "perm_ray.cli.main", *command]
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        while process.poll() is None:
            stop.check()
            try:
                process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    return process.returncode


def _table(
    base: str, common: Sequence[str], variants: Mapping[str, Sequence[str]], seeds: Sequence[int]
) -> Ablation:
    cells = [Cell(str(name), seed, tuple(own)) for name, own in variants.items() for seed in seeds]
    return Ablation(base, tuple(common), tuple(cells))


def _log(folder: Path, cell: Cell) -> Path:
    return folder / "logs" / f"{cell.name}.log"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.startswith("perm-ray ")), "")


def _shown(given: object) -> str:
    return ", ".join(map(str, given)) if isinstance(given, dict) else json.dumps(given, default=str)[:60]
