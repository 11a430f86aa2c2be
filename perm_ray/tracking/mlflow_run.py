"""Write one run in MLflow: open it or go on with it, describe it, feed it, end it.

Nothing is caught here but what says that a run is not there: the thread in `mlflow_sender.py` decides
what an error means. Every call may be made again, after an answer that was lost or in a resumed run.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perm_ray.config.redact import redact_text
from perm_ray.config.schema import TrackingConfig
from perm_ray.tracking.chosen import Chosen
from perm_ray.tracking.environment import RunFacts
from perm_ray.tracking.mlflow_client import TrackedRun, connect, connect_tracing, open_experiment
from perm_ray.tracking.traces import TraceWriter, table
from perm_ray.tracking.tracker import EndState

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CHANGED_TAG = "resume.changed_params"
_MAX_METRICS = 1000  # MLflow's limit for one request
_MAX_NAME_CHARS = 250
_NOT_IN_A_NAME = re.compile(r"[^\w .:-]")
_MAX_TAG_CHARS = 4900  # MLflow's limit is 5000 on older servers


class MlflowRun:
    """Creating one does nothing; `open` connects."""

    def __init__(self, config: TrackingConfig, uri: str, name: str, directory: Path) -> None:
        self._config = config
        self._uri = uri
        self._name = name
        self._directory = directory
        self._client: MlflowClient | None = None
        self._tracked: TrackedRun | None = None

    @property
    def run_id(self) -> str | None:
        return self._tracked.run_id if self._tracked is not None else None

    def open(self, resume_id: str | None) -> None:
        """Create the run, or go on with `resume_id`; with a new one where that run is gone."""
        if self._tracked is not None:
            return
        client = self._client = self._client or connect(self._uri)
        tracked = None if resume_id is None else self._go_on(client, resume_id)
        if tracked is None:
            experiment_id = open_experiment(client, self._config, self._directory)
            tags = {} if resume_id is None else {"resume.lost_run": resume_id}
            created = client.create_run(experiment_id, run_name=self._name, tags=tags)
            tracked = TrackedRun(created.info.run_id, experiment_id, redact_text(self._uri))
        tracked.write(self._directory)
        self._tracked = tracked

    def describe(self, facts: RunFacts) -> None:
        """Parameters, tags and files. Parameters keep their first values, which MLflow cannot change; how
        a resumed run differs from them is in a tag."""
        from mlflow.entities import Param, RunTag

        client, tracked = self._opened()
        known = client.get_run(tracked.run_id).data
        new = [Param(name, value) for name, value in facts.params.items() if name not in known.params]
        tags = dict(facts.tags)
        changed = {
            name: [known.params[name], value]
            for name, value in facts.params.items()
            if known.params.get(name, value) != value
        }
        if changed:
            tags[_CHANGED_TAG] = json.dumps(changed)[:_MAX_TAG_CHARS]
        client.log_batch(
            tracked.run_id, params=new, tags=[RunTag(name, value) for name, value in tags.items()]
        )
        client.log_text(tracked.run_id, facts.config_text, "config.yaml")
        for name, document in facts.documents.items():
            client.log_text(tracked.run_id, json.dumps(document, indent=2), name)

    def sent(self, file: str) -> int:
        """Return how many lines of a file MLflow has."""
        return self._tracked.sent.get(file, 0) if self._tracked is not None else 0

    def note_sent(self, file: str, lines: int) -> None:
        """Remember, for a resume as well, that MLflow has so many lines of a file."""
        _, tracked = self._opened()
        self._tracked = replace(tracked, sent={**tracked.sent, file: lines})
        self._tracked.write(self._directory)

    def send_metrics(self, step: int, time_ms: int, metrics: Mapping[str, float]) -> None:
        """Log a row of numbers."""
        from mlflow.entities import Metric

        client, tracked = self._opened()
        points = [Metric(metric_name(name), value, time_ms, step) for name, value in metrics.items()]
        for start in range(0, len(points), _MAX_METRICS):
            client.log_batch(tracked.run_id, metrics=points[start : start + _MAX_METRICS])

    def send_rollouts(self, step: int, time_ms: int, chosen: Sequence[Chosen]) -> None:
        """Log rollouts as traces and as a table of the step."""
        client, tracked = self._opened()
        writer = TraceWriter(client, connect_tracing(self._uri), tracked.experiment_id, tracked.run_id)
        writer.write(step, time_ms, chosen)
        self._write_table(step, table(tracked.run_id, step, chosen))

    def end(self, status: EndState) -> None:
        """Say how the run ended."""
        client, tracked = self._opened()
        client.set_terminated(tracked.run_id, status)
        self._tracked = replace(tracked, ended=status)
        self._tracked.write(self._directory)

    def _go_on(self, client: MlflowClient, run_id: str) -> TrackedRun | None:
        from mlflow.exceptions import MlflowException

        try:
            info = client.get_run(run_id).info
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if info.lifecycle_stage != "active":
            return None
        client.update_run(run_id, status="RUNNING")
        known = TrackedRun.read(self._directory)
        sent = known.sent if known is not None and known.run_id == run_id else {}
        return TrackedRun(run_id, info.experiment_id, redact_text(self._uri), sent)

    def _write_table(self, step: int, columns: dict[str, list[Any]]) -> None:
        client, tracked = self._opened()
        name = f"samples/step_{step:06d}.json"
        if name in {file.path for file in client.list_artifacts(tracked.run_id, "samples")}:
            # `log_table` would add to it, and a step that was run again would be in it twice.
            data = [list(row) for row in zip(*columns.values(), strict=True)]
            client.log_text(tracked.run_id, json.dumps({"columns": list(columns), "data": data}), name)
        else:
            client.log_table(tracked.run_id, columns, name)

    def _opened(self) -> tuple[MlflowClient, TrackedRun]:
        assert self._client is not None
        assert self._tracked is not None
        return self._client, self._tracked


def is_refused(error: Exception) -> bool:
    """Return whether MLflow will never take a record, as opposed to not being there to take it."""
    if isinstance(error, TypeError | ValueError | LookupError) and not isinstance(error, OSError):
        return True  # requests' own errors are OSErrors, some of them ValueErrors too
    return getattr(error, "error_code", None) in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")


def metric_name(metric: str) -> str:
    """Return a metric's name as MLflow takes it: a scenario's tag may hold anything.

    MLflow refuses a whole batch for one name that is no relative path, is longer than 250 characters or holds
    other characters than letters, digits, `_-./ :`. What is lost of a name is replaced by a checksum.
    """
    parts = [_NOT_IN_A_NAME.sub("_", part) for part in metric.split("/")]
    name = "/".join(part if part.strip(".") else "_" for part in parts)
    if name == metric and len(name) <= _MAX_NAME_CHARS:
        return metric
    return f"{name[: _MAX_NAME_CHARS - 9]}_{zlib.crc32(metric.encode()):08x}"
