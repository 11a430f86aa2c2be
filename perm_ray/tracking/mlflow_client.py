"""The explicit MLflow client, and where a run's records go. Whatever speaks to MLflow begins here."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from perm_ray.config.redact import REDACTED, redact_text
from perm_ray.config.schema import TrackingConfig
from perm_ray.files import write_json_atomic

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.tracing.client import TracingClient

# Set before MLflow is imported, unless the user has set them. Its own retries take minutes and write
# to the terminal; it prints a URL at the end of a run; and it reports its usage to its makers.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_RUN_FILE = "mlflow_run.json"


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run as MLflow knows it; kept in the run directory, where a resume and people find it."""

    run_id: str
    experiment_id: str
    uri: str
    sent: Mapping[str, int] = field(default_factory=dict)  # by file: how many of its lines MLflow has
    ended: str = ""  # the end state that MLflow was given last

    def write(self, directory: Path) -> None:
        write_json_atomic(directory / _RUN_FILE, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> TrackedRun | None:
        """None when the run in `directory` was never opened in MLflow."""
        try:
            return cls(**json.loads((directory / _RUN_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    @classmethod
    def rewind(cls, directory: Path, lines: Mapping[str, int]) -> None:
        """Note that files have only so many lines now: the later steps are going to be run again."""
        tracked = cls.read(directory)
        if tracked is not None:
            sent = {name: min(count, lines.get(name, count)) for name, count in tracked.sent.items()}
            replace(tracked, sent=sent, ended="").write(directory)

    @staticmethod
    def forget(directory: Path) -> None:
        (directory / _RUN_FILE).unlink(missing_ok=True)


def tracking_uri(config: TrackingConfig, directory: Path) -> str:
    """`tracking.mlflow_uri`, or an sqlite file in the run directory.

    A resumed run reads its own `config.yaml`, where credentials are masked: without the mask, MLflow
    takes them from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    """
    # A database's path is decoded as that of an address: `%20` and `?` would lead elsewhere.
    path = str(directory.absolute() / "mlflow.db").replace("%", "%25").replace("?", "%3F")
    uri = config.mlflow_uri or f"sqlite:///{path}"
    return uri.replace(f"{REDACTED}@", "")


def connect(uri: str) -> MlflowClient:
    """Return an explicit client: nothing of MLflow's global state is touched."""
    _prepare()
    from mlflow import MlflowClient

    _quieten()
    return MlflowClient(tracking_uri=uri)


def connect_tracing(uri: str) -> TracingClient:
    """Return the part of the client that takes whole traces."""
    _prepare()
    from mlflow.tracing.client import TracingClient

    return TracingClient(uri)


def open_experiment(client: MlflowClient, config: TrackingConfig, directory: Path) -> str:
    """Return the id of the configured experiment; a new one keeps its files in `directory`, without a
    server."""
    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is not None:
        return experiment.experiment_id
    local = None if config.mlflow_uri else (directory.absolute() / "mlartifacts").as_uri()
    return client.create_experiment(config.experiment, artifact_location=local)


def cause_of(error: BaseException | None) -> str:
    """Return an error as a warning tells it: one short line without credentials."""
    return " ".join(redact_text(str(error)).split())[:300] if error else "it is slow"


def _prepare() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _quieten() -> None:
    for name in ("mlflow", "alembic"):  # they announce every table they create
        logging.getLogger(name).setLevel(logging.WARNING)
