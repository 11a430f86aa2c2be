"""A report's figures and files as one finished MLflow run. The verbs that make reports end here.

Unlike a training run's tracker this waits for MLflow and says so when it fails: by then the report is on
the disk, and sending it is all that is left to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from perm_ray.config.redact import redact_text
from perm_ray.config.schema import TrackingConfig
from perm_ray.errors import RunError
from perm_ray.tracking.mlflow_client import cause_of, connect, open_experiment, tracking_uri


def log_report(
    config: TrackingConfig,
    run_name: str,
    directory: Path,
    metrics: Mapping[str, float],
    params: Mapping[str, str],
    files: Sequence[Path],
    children: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Log a run to `tracking.mlflow_uri`, or to an sqlite file in `directory`; returns the address.

    `children` are runs below it, by name, each with metrics of its own. Each request is bounded by MLflow's
    own timeout. Raises `RunError` when MLflow does not take it.
    """
    uri = tracking_uri(config, directory)
    with _explained(uri, f"the report; its files are in {directory}"):
        client = connect(uri)
        experiment_id = open_experiment(client, config, directory)
        run_id = client.create_run(experiment_id, run_name=run_name).info.run_id
        for name, value in params.items():
            client.log_param(run_id, name, redact_text(value))
        for name, value in metrics.items():
            client.log_metric(run_id, name, value)
        for file in files:
            client.log_artifact(run_id, str(file))
        for name, figures in (children or {}).items():
            tags = {"mlflow.parentRunId": run_id}
            child = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
            for metric, value in figures.items():
                client.log_metric(child, metric, value)
            client.set_terminated(child, "FINISHED")
        client.set_terminated(run_id, "FINISHED")
    return redact_text(uri)


def open_run(config: TrackingConfig, run_name: str) -> str:
    """Return the id of a new run on the server `tracking.mlflow_uri`, for a job that goes on with it.

    Raises `RunError` when MLflow does not take it.
    """
    uri = tracking_uri(config, Path())
    with _explained(uri, "a new run"):
        client = connect(uri)
        experiment_id = open_experiment(client, config, Path())
        return client.create_run(experiment_id, run_name=run_name).info.run_id


def end_run(config: TrackingConfig, run_id: str) -> None:
    """Record that a run that was opened never began."""
    uri = tracking_uri(config, Path())
    with _explained(uri, "the end of a run"):
        connect(uri).set_terminated(run_id, "FAILED")


@contextmanager
def _explained(uri: str, what: str) -> Iterator[None]:
    """Fault boundary, the tracking server: whatever MLflow raises becomes one sentence."""
    try:
        yield
    except Exception as error:
        why = cause_of(error)
        raise RunError(f"MLflow at {redact_text(uri)} did not take {what} ({why}).") from error
