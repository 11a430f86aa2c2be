"""Find the models that an evaluation compares, and the folder where their answers are kept.

Answers are kept by the digest of the model's weights: an evaluation that was stopped goes on with the models
that are missing, and refuses a folder that was begun with another setup.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perm_ray.config import CONFIGS
from perm_ray.config.engines import EndpointModel, Model
from perm_ray.config.load import load_config
from perm_ray.data.tables import Problems, json_rows
from perm_ray.errors import ConfigError, DataError
from perm_ray.files import fingerprint, text_digest, write_json_atomic
from perm_ray.models.resolve import resolve_model
from perm_ray.runs.directory import RunDirectory

_EXPORTS = ("policy", "model")  # of `train` and of `finetune`, in a run directory


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that is evaluated: what it is called, its folder or its endpoint, and the digest of that."""

    name: str
    model: Path | EndpointModel
    digest: str

    @property
    def folder(self) -> Path:
        """Return the folder of the model. Raises `DataError` for an endpoint."""
        if isinstance(self.model, EndpointModel):
            raise DataError(
                f"{self.name} is an endpoint, which this evaluation cannot sample from: name a folder or a "
                "hub id."
            )
        return self.model

    def file(self, evaluation: Path) -> Path:
        """Return where its answers are kept, in the folder of the evaluation."""
        return evaluation / "answers" / f"{self.digest[:16]}.jsonl"


def find_candidates(names: Sequence[str], models: Mapping[str, Model]) -> list[Candidate]:
    """Return the models of these names, in order.

    Args:
        names: Built-in names, folders, hub ids, endpoints among `models`, or run directories, which stand for
            two models each: the policy that training began with, and the trained one.
        models: The section `models`.

    Raises:
        UserError: There is no such model.
    """
    found = []
    for name in names:
        endpoint = models.get(name)
        if isinstance(endpoint, EndpointModel):
            digest = text_digest(f"{endpoint.base_url} {endpoint.model}")
            found.append(Candidate(name, endpoint, digest))
        else:
            found += [Candidate(each, folder, fingerprint(folder)) for each, folder in named_models(name)]
    return found


def named_models(name: str) -> list[tuple[str, Path]]:
    """Return the models behind a name, each with what it is called: two of a run directory, before and after.

    Raises:
        UserError: There is no such model, or the run has none yet.
    """
    run = run_of(name)
    if run is None:
        return [(name, resolve_model(name))]
    exported = [run.path / each for each in _EXPORTS if (run.path / each / "config.json").is_file()]
    if not exported:
        raise DataError(
            f"{name} is the directory of a run without a trained model (policy/ or model/): wait for its "
            "end, or resume it."
        )
    before, called = load_config(run.config_file).policy.model, run.path.resolve().name
    after = str(exported[0])
    return [(f"{called}, before", resolve_model(before)), (f"{called}, after", resolve_model(after))]


def models_and_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the models among the arguments, and the overrides. Raises `DataError` without a model."""
    models, overrides = names_and_overrides(arguments)
    if not models:
        raise DataError("A model must be named, found none: name one or more.")
    return models, overrides


def names_and_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of models or files among the arguments, and the overrides (a.b=c)."""
    names = [each for each in arguments if "=" not in each or Path(each).exists()]
    return names, [each for each in arguments if each not in names]


def config_of_run(run: RunDirectory | None) -> Path:
    """Return the configuration of a run, or configs/local.yaml where there is none."""
    return run.config_file if run and run.config_file.is_file() else CONFIGS / "local.yaml"


def run_of(name: str) -> RunDirectory | None:
    """Return the run directory that is named instead of a model; None where it is none."""
    run = RunDirectory(Path(name).expanduser())
    return run if run.metrics_file.is_file() else None


def begin_evaluation(
    folder: Path, setup: Mapping[str, object], candidates: Sequence[Candidate]
) -> dict[Path, Candidate]:
    """Write `setup.json`, and return the candidates without answers yet, by the file of these.

    Raises:
        DataError: The folder holds an evaluation with another setup.
    """
    make_folder(folder)
    file, now = folder / "setup.json", json.loads(json.dumps(setup))
    if file.is_file():
        then = json.loads(file.read_text(encoding="utf-8"))
        changed = sorted(key for key in {**then, **now} if then.get(key) != now.get(key))
        if changed:
            raise DataError(
                f"{file.parent} holds an evaluation with other {', '.join(changed)}, which this one cannot "
                "be compared with: name another folder with --out."
            )
    write_json_atomic(file, now)
    return {each.file(folder): each for each in candidates if not each.file(folder).is_file()}


def make_folder(folder: Path) -> None:
    """Make the folder of an evaluation. Raises `ConfigError` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out must be a folder that can be written, found {folder} ({error.strerror}): name another."
        ) from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--out must be a folder that can be written, found {folder}: name another.")


def kept_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file that an evaluation keeps. Raises `DataError` when it was damaged."""
    problems = Problems()
    rows = [row.data for row in json_rows(file, problems)]
    try:
        problems.settle(file)
    except DataError as error:
        raise DataError(f"{error}\nIt was written whole: delete it, and it is made again.") from error
    return rows
