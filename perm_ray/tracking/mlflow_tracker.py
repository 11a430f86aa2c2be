"""MLflow, in the background: training never waits for it and never fails because of it.

`log_step` puts numbers in a queue; one thread imports MLflow (3 to 5 seconds), opens the run and sends
a step at a time through an explicit client. While a server is away the queue grows; a step that could
not be sent after a few tries is dropped, and one warning at the end says how many were. Nothing is
lost by that: `metrics.jsonl` in the run directory has every step.

On resume the same MLflow run goes on. Points of steps that are run again appear twice in it (MLflow
cannot delete a point), and parameters keep their first values (it cannot change one); the artifact
`config.yaml` is that of the latest start.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from perm_ray.config.load import dump_config
from perm_ray.config.redact import REDACTED, redact_text
from perm_ray.config.schema import Config, TrackingConfig
from perm_ray.tracking.tracker import EndState, NullTracker, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOG = logging.getLogger(__name__)
_PAUSES_S = (1.0, 4.0, 0.0)  # after each failed try; as many tries as pauses
_FINISH_S = 15.0  # all that `finish` may take
_DRAIN_S = 10.0  # of which for the steps still queued; the rest is for the end state
_RUN_ID_S = 20.0

# Set before MLflow is imported, unless the user has set them. Its own retries take minutes and write
# to the terminal; it prints a URL at the end of a run; and it reports its usage to its makers.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def open_tracker(config: Config, run_name: str, directory: Path, resume_id: str | None) -> Tracker:
    """The tracker of a run, started: MLflow, or nothing when `tracking.mlflow` is false."""
    tracker = MlflowTracker(config.tracking, run_name, directory) if config.tracking.mlflow else NullTracker()
    tracker.start(config, resume_id)
    return tracker


def tracking_uri(config: TrackingConfig, directory: Path) -> str:
    """`tracking.mlflow_uri`, or an sqlite file in the run directory.

    A resumed run reads its own `config.yaml`, where credentials are masked: without the mask, MLflow
    takes them from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    """
    uri = config.mlflow_uri or f"sqlite:///{directory.absolute() / 'mlflow.db'}"
    return uri.replace(f"{REDACTED}@", "")


def run_params(config: Config) -> dict[str, str]:
    """The few parameters that people sort runs by; the rest is in the artifact `config.yaml`."""
    trainer, rollout, rewards = config.trainer, config.rollout, config.rewards
    params: dict[str, object] = {
        "policy.model": config.policy.model,
        "run.seed": config.run.seed,
        "run.steps": config.run.steps,
        "data.train": config.data.train,
        "rollout.prompts_per_step": rollout.prompts_per_step,
        "rollout.completions_per_prompt": rollout.completions_per_prompt,
        "rollout.max_completion_tokens": rollout.max_completion_tokens,
        "rollout.temperature": rollout.temperature,
        "rewards.combine": rewards.combine,
        "rewards.bystander_coef": rewards.bystander_coef,
        "trainer.lr": trainer.lr,
        "trainer.objective.loss": trainer.objective.loss,
        "trainer.objective.kl_coef": trainer.objective.kl_coef,
        "trainer.zero_stage": trainer.zero_stage,
        "trainer.num_ranks": trainer.num_ranks,
        "trainer.dtype": trainer.dtype,
    }
    for name, pool in config.judges.pools.items():
        params[f"judges.{name}"] = f"{pool.engine}: {config.judges.model(pool)}"
    return {name: redact_text(str(value)) for name, value in params.items()}


@dataclass(frozen=True)
class _Step:
    step: int
    metrics: Mapping[str, float]
    time_ms: int


class MlflowTracker:
    """A `Tracker`. Creating one does nothing; `start` returns at once."""

    def __init__(self, config: TrackingConfig, run_name: str, directory: Path) -> None:
        self._uri = tracking_uri(config, directory)
        self._config = config
        self._run_name = run_name
        self._directory = directory.absolute()
        self._queue: SimpleQueue[_Step | EndState] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._tried_to_open = threading.Event()
        self._finishing = threading.Event()
        self._drain_until_s = math.inf
        self._num_logged = 0  # counted by the driver
        self._num_sent = 0  # counted by the thread
        self._ended = False
        self._described = False
        self._last_error: Exception | None = None
        self._client: MlflowClient | None = None
        self._run_id: str | None = None

    def start(self, config: Config, resume_id: str | None) -> None:
        # A daemon: a server that does not answer must not keep the process alive.
        self._thread = threading.Thread(
            target=self._work, args=(config, resume_id), name="mlflow-tracker", daemon=True
        )
        self._thread.start()

    @property
    def uri(self) -> str:
        """The tracking URI, without credentials."""
        return redact_text(self._uri)

    @property
    def run_id(self) -> str | None:
        """The MLflow run, waiting (20 s at most) until it exists; None while MLflow is out of reach."""
        if self._thread is not None:
            self._tried_to_open.wait(_RUN_ID_S)
        return self._run_id

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue a step. Numbers that are not finite are left out: they are null in `metrics.jsonl`."""
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._num_logged += 1
        self._queue.put(_Step(step, finite, time.time_ns() // 1_000_000))

    def finish(self, status: EndState) -> None:
        if self._thread is None:
            return
        self._drain_until_s = time.monotonic() + _DRAIN_S
        self._finishing.set()
        self._queue.put(status)
        self._thread.join(_FINISH_S)
        unsent = self._num_logged - self._num_sent
        if unsent or not self._ended:
            cause = redact_text(str(self._last_error))[:300] if self._last_error else "it is slow"
            _LOG.warning(
                "MLflow at %s did not take %d of %d records%s (%s). Training went on; %s has every step.",
                self.uri,
                unsent,
                self._num_logged,
                "" if self._ended else " nor the run's end state",
                " ".join(cause.split()),
                self._directory / "metrics.jsonl",
            )

    def _work(self, config: Config, resume_id: str | None) -> None:
        """The thread: open the run, send what comes, record the end."""

        def open_run() -> None:
            self._open(resume_id)

        def describe() -> None:
            self._describe(config)

        def send(item: _Step) -> bool:
            in_time = time.monotonic() < self._drain_until_s
            return in_time and self._deliver(open_run, lambda: self._send(item))

        if self._deliver(open_run):
            self._deliver(describe)
        while isinstance(item := self._queue.get(), _Step):
            if send(item):
                self._num_sent += 1
            elif self._finishing.is_set():
                self._drain_until_s = 0.0  # the server is away: drop the rest at once
        status = item
        self._ended = self._deliver(open_run, lambda: self._end(status))
        if self._ended and not self._described:
            self._deliver(describe)

    def _deliver(self, *calls: Callable[[], None]) -> bool:
        """Fault boundary, the tracking outage: whatever MLflow raises is kept for the final warning."""
        for pause_s in _PAUSES_S:
            try:
                for call in calls:
                    call()
                return True
            except Exception as error:
                self._last_error = error
            finally:
                self._tried_to_open.set()
            if self._finishing.wait(pause_s):  # a run that ends gets one try, without a pause
                break
        return False

    def _open(self, resume_id: str | None) -> None:
        if self._run_id is not None:
            return
        client = self._client = self._client or connect(self._uri)
        if resume_id is not None:
            client.update_run(resume_id, status="RUNNING")
            self._run_id = resume_id
            return
        experiment_id = open_experiment(client, self._config, self._directory)
        self._run_id = client.create_run(experiment_id, run_name=self._run_name).info.run_id

    def _describe(self, config: Config) -> None:
        from mlflow.entities import Param

        client, run_id = self._opened()
        known = client.get_run(run_id).data.params  # a resumed run has them, perhaps with other values
        params = [Param(name, value) for name, value in run_params(config).items() if name not in known]
        client.log_batch(run_id, params=params)
        client.log_text(run_id, dump_config(config), "config.yaml")
        self._described = True

    def _send(self, item: _Step) -> None:
        from mlflow.entities import Metric

        client, run_id = self._opened()
        metrics = [Metric(name, value, item.time_ms, item.step) for name, value in item.metrics.items()]
        client.log_batch(run_id, metrics=metrics)

    def _end(self, status: EndState) -> None:
        client, run_id = self._opened()
        client.set_terminated(run_id, status)

    def _opened(self) -> tuple[MlflowClient, str]:
        assert self._client is not None
        assert self._run_id is not None
        return self._client, self._run_id


def open_experiment(client: MlflowClient, config: TrackingConfig, directory: Path) -> str:
    """The id of the configured experiment; a new one keeps its files in `directory`, without a server."""
    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is not None:
        return experiment.experiment_id
    local = None if config.mlflow_uri else (directory.absolute() / "mlartifacts").as_uri()
    return client.create_experiment(config.experiment, artifact_location=local)


def connect(uri: str) -> MlflowClient:
    """An explicit client: nothing of MLflow's global state is touched."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # they announce every table they create
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)
