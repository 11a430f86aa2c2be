"""Pack what a job needs and nothing else: the code, the configuration and the files it names.

Ray uploads the folder and unpacks it on every node. Models are not in it: a model folder must be on storage
that all nodes see. Secrets that were asked for by name are in a file of their own, which the job reads once
and deletes: in Ray's own environment settings, everybody who may list jobs would read them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import perm_ray
from perm_ray.config.load import dump_config
from perm_ray.config.redact import REDACTED
from perm_ray.config.schema import Config
from perm_ray.errors import ConfigError
from perm_ray.files import write_text_atomic

PACKAGE = "perm_ray"
CONFIG_FILE = "config.yaml"
SECRETS_FILE = "secrets.json"
LIMIT_BYTES = 100 << 20  # Ray's own, on a working directory
_NAMED = 5  # of the largest files, in the error


def make_package(folder: Path, config: Config, secrets: Mapping[str, str], with_code: bool) -> Config:
    """Fill the empty `folder`; returns the configuration as it is in there, its paths below the folder.

    Raises `ConfigError` when it would be over Ray's 100 MiB, and names the largest files.
    """
    packed = _with_inputs(config, folder)
    text = dump_config(packed)
    if REDACTED in text:
        raise ConfigError(
            "The configuration holds a secret, which is not sent: keep it in an environment variable and "
            "name that with --env (MLflow's in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)."
        )
    write_text_atomic(folder / CONFIG_FILE, text)
    if secrets:
        write_text_atomic(folder / SECRETS_FILE, json.dumps(dict(secrets)))
        (folder / SECRETS_FILE).chmod(0o600)
    if with_code:
        source = Path(perm_ray.__file__).parent
        shutil.copytree(source, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    _check_size(folder)
    return packed


def take_secrets(folder: Path) -> None:
    """On the cluster: put the secrets that came along into the environment, and delete their file.

    A variable that the node has already keeps its value.
    """
    file = folder / SECRETS_FILE
    if file.exists():
        for name, value in json.loads(file.read_text(encoding="utf-8")).items():
            os.environ.setdefault(name, value)
        file.unlink()


def secrets_from(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `--env NAME`; a value is never written on a command line."""
    for name in names:
        if name not in environment:
            raise ConfigError(
                "--env expects the name of an environment variable that is set here, found "
                f"{name.split('=')[0]!r}: export it first."
            )
    return {name: environment[name] for name in names}


def _with_inputs(config: Config, folder: Path) -> Config:
    """Copy every file that the configuration names into `inputs/`, and name the copies instead."""

    def take(path: str | None, key: str) -> str | None:
        if path is None or path.startswith("builtin:"):
            return path
        found = Path(path).expanduser()
        if not found.is_file():
            raise ConfigError(f"{key} must be a file, found nothing at {path}: check the path.")
        target = folder / "inputs" / key
        target.mkdir(parents=True, exist_ok=True)
        # A rubric's language variants lie beside it: name.md, name.de.md.
        for file in [found, *found.parent.glob(f"{found.stem}.*{found.suffix}")]:
            shutil.copyfile(file, target / file.name)
        return str(Path("inputs") / key / found.name)

    data = replace(
        config.data,
        train=take(config.data.train, "data.train"),
        heldout=take(config.data.heldout, "data.heldout"),
    )
    pools = {
        name: replace(pool, rubric=take(pool.rubric, f"judges.pools.{name}.rubric"))
        for name, pool in config.judges.pools.items()
    }
    return replace(
        config,
        data=data,
        prompt=replace(config.prompt, template=take(config.prompt.template, "prompt.template")),
        judges=replace(config.judges, pools=pools),
        rewards=replace(config.rewards, score_map=take(config.rewards.score_map, "rewards.score_map")),
    )


def _check_size(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    whole = sum(sizes.values())
    if whole > LIMIT_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:_NAMED]
        named = ", ".join(f"{name} ({sizes[name] / 2**20:.1f} MiB)" for name in largest)
        raise ConfigError(
            f"A job's files may take {LIMIT_BYTES >> 20} MiB, found {whole / 2**20:.1f} MiB, the largest: "
            f"{named}. Put large files on storage that all nodes see and name them by their path there."
        )
