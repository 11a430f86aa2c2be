"""MLflow, in the background: training never waits for it and never fails because of it.

`metrics` and `rollouts` put records in a queue; one thread imports MLflow (3 to 5 seconds), opens
the run and sends them through an explicit client. What cannot be sent goes to a file of the run directory
(`spool.py`), at once while a server is away, and from there to MLflow when it answers again, at the
latest when the run is resumed. One warning says so. Nothing else would be lost either: `metrics.jsonl`
and `samples/` have everything.

On resume the same MLflow run goes on. Points of steps that are run again appear twice in it (MLflow
cannot delete a point); the artifact `config.yaml` is that of the latest start.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue

from perm_ray.config.redact import redact_text
from perm_ray.config.schema import Config, TrackingConfig
from perm_ray.tracking.chosen import choose, mean_rewards
from perm_ray.tracking.environment import RunFacts, gather
from perm_ray.tracking.mlflow_client import cause_of, tracking_uri
from perm_ray.tracking.mlflow_run import MlflowRun, is_refused
from perm_ray.tracking.rollout_rows import chosen_rows
from perm_ray.tracking.sinks import Purpose
from perm_ray.tracking.spool import Record, Spool
from perm_ray.tracking.tracker import EndState, Tracker
from perm_ray.types import RolloutGroup

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_S = 1.0  # after a failed try; doubled after each one that follows ...
_MAX_PAUSE_S = 30.0  # ... up to this
_TRIES_BEFORE_WARNING = 3
_FINISH_S = 15.0  # all that `finish` may take
_DRAIN_S = 10.0  # of which for the records still there; the rest is for the end state
_MAX_QUEUED = 1000  # records; what is beyond goes to the spool at once
_MAX_QUEUED_SAMPLES = 4  # steps with samples; what is beyond is dropped, and counted


def open_tracker(
    config: Config, run_name: str, directory: Path, resume_id: str | None, contents: Mapping[str, str]
) -> Tracker:
    """The tracker of a run, started: MLflow, or nothing when `tracking.mlflow` is false.

    `contents` names the run's data and models by digest.
    """
    tracker = MlflowTracker(config.tracking, run_name, directory) if config.tracking.mlflow else Tracker()
    tracker.start(config, resume_id, contents)
    return tracker


class MlflowTracker(Tracker):
    """A `Tracker`. Creating one does nothing; `start` returns at once."""

    def __init__(self, config: TrackingConfig, run_name: str, directory: Path) -> None:
        self._uri = tracking_uri(config, directory)
        self._config = config
        self._directory = directory.absolute()
        self._run = MlflowRun(config, self._uri, run_name, self._directory)
        self._spool = Spool(self._directory)
        self._queue: SimpleQueue[Record] = SimpleQueue()
        self._thread: threading.Thread | None = None
        # Of the driver's thread.
        self._earlier_rewards: dict[str, float] = {}
        # Of the sending thread; the driver's reads them when the run ends.
        self._facts: RunFacts | None = None
        self._described = False
        self._in_hand: Record | None = None
        self._failures = 0
        self._next_try_s = 0.0
        self._deadline_s = math.inf
        self._last_error: Exception | None = None
        self._ended = False
        # Of both.
        self._count_lock = threading.Lock()
        self._num_queued_samples = 0
        self._num_dropped_samples = 0
        self._num_lost = 0
        self._warned = False

    def start(self, config: Config, resume_id: str | None, contents: Mapping[str, str]) -> None:
        # A daemon: a server that does not answer must not keep the process alive.
        self._thread = threading.Thread(
            target=self._work, args=(config, resume_id, contents), name="mlflow-tracker", daemon=True
        )
        self._thread.start()

    @property
    def uri(self) -> str:
        """The tracking URI, without credentials."""
        return redact_text(self._uri)

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None until MLflow has it. Does not wait: `mlflow_run.json` has it in time."""
        return self._run.run_id

    # ---- the driver's thread ----------------------------------------------------------------

    def metrics(self, step: int, metrics: Mapping[str, float], purpose: Purpose = "train") -> None:
        """Queue a step's numbers, without those that are not finite: they are null in `metrics.jsonl`."""
        del purpose  # their names say it
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        record = Record("metrics", step, _now_ms(), finite)
        if self._queue.qsize() < _MAX_QUEUED:
            self._queue.put(record)
        else:
            self._keep(record)

    def rollouts(self, step: int, groups: Sequence[RolloutGroup], purpose: Purpose = "train") -> None:
        """Choose and queue a few of a training step's rollouts; none when too many are still waiting."""
        every = self._config.samples.every
        if purpose != "train" or not every or step % every != 0:
            return
        with self._count_lock:
            if self._num_queued_samples >= _MAX_QUEUED_SAMPLES:
                self._num_dropped_samples += 1
                return
            self._num_queued_samples += 1
        rows = chosen_rows(choose(groups, self._earlier_rewards, self._config.samples.count))
        self._earlier_rewards |= mean_rewards(groups)
        self._queue.put(Record("samples", step, _now_ms(), {"rows": rows}))

    def finish(self, status: EndState) -> None:
        if self._thread is None:
            return
        self._deadline_s = time.monotonic() + _DRAIN_S
        self._queue.put(Record("end", 0, _now_ms(), {"status": status}))
        self._thread.join(_FINISH_S)
        # Something is left when the thread still waits for a server; sent twice is no harm.
        for record in (self._in_hand, *_left_in(self._queue)):
            if record is not None:
                self._keep(record)
        self._spool.compact()
        kept = len(self._spool)
        if kept or self._num_lost:
            told = (
                f"MLflow at {self.uri} did not take {kept + self._num_lost} records"
                f"{'' if self._ended else ', the end state among them'} ({cause_of(self._last_error)})."
            )
            resume = f"perm-ray train --resume {self._directory}"
            self._warn(f"{told} {self._spool.path} keeps {kept} of them: {resume} sends them.")

    # ---- the sending thread -----------------------------------------------------------------

    def _work(self, config: Config, resume_id: str | None, contents: Mapping[str, str]) -> None:
        connect = partial(self._connect, config, resume_id, contents)
        self._attempt(connect)
        while True:
            try:
                record = self._in_hand = self._queue.get(timeout=self._wait_s())
            except Empty:
                if len(self._spool):
                    self._replay(connect)
                else:
                    self._attempt(connect)
                continue
            if record.kind == "end":
                self._finish_sending(connect, record)
                return
            self._replay(connect)
            if len(self._spool) or not self._attempt(connect, partial(self._run.send, record)):
                self._keep(record)
            self._in_hand = None
            if record.kind == "samples":
                with self._count_lock:
                    self._num_queued_samples -= 1

    def _finish_sending(self, connect: Callable[[], None], end: Record) -> None:
        """The last of the queue: what is kept, as far as there is time, and the end state."""
        self._next_try_s = 0.0  # one try at once, however the last one went
        self._replay(connect)
        tags = {"samples.dropped": str(self._num_dropped_samples)} if self._num_dropped_samples else {}
        self._deadline_s = math.inf  # the end state has its own time; `finish` bounds it
        if not self._failures or not len(self._spool):
            self._ended = self._attempt(connect, partial(self._run.end, end.body["status"], tags))
        if not self._ended:
            self._keep(end)
        self._in_hand = None

    def _connect(self, config: Config, resume_id: str | None, contents: Mapping[str, str]) -> None:
        self._run.open(resume_id)
        if not self._described:
            self._facts = self._facts or gather(config, contents)
            try:
                self._run.describe(self._facts)
            except Exception as error:
                if not is_refused(error):
                    raise
                self._last_error = error
                self._num_lost += 1
            self._described = True

    def _replay(self, connect: Callable[[], None]) -> None:
        """Send what was kept, oldest first, until it is all there or MLflow is not."""
        while (record := self._spool.first()) is not None:
            # The end of an earlier session is not that of this one.
            if record.kind != "end" and not self._attempt(connect, partial(self._run.send, record)):
                return
            self._spool.forget_first()

    def _attempt(self, *calls: Callable[[], None]) -> bool:
        """Make the calls, unless it is too early after a failure or too late: fault boundary, the tracking
        outage. Returns False when they are to be made again; what MLflow refuses is counted as lost."""
        now_s = time.monotonic()
        if now_s < self._next_try_s or now_s > self._deadline_s:
            return False
        try:
            for call in calls:
                call()
        except Exception as error:
            self._last_error = error
            if is_refused(error) and self._run.run_id is not None:
                self._num_lost += 1
                return True
            self._failures += 1
            pause_s = min(_FIRST_PAUSE_S * 2 ** (self._failures - 1), _MAX_PAUSE_S)
            self._next_try_s = time.monotonic() + pause_s
            if self._failures == _TRIES_BEFORE_WARNING:
                self._warn(
                    f"MLflow at {self.uri} is out of reach ({cause_of(error)}). Training goes on; "
                    f"{self._spool.path} keeps what MLflow should get until it answers, at the latest when "
                    f"the run is resumed: perm-ray train --resume {self._directory}"
                )
            return False
        self._failures = 0
        return True

    def _wait_s(self) -> float | None:
        """How long to wait for a record: for ever, unless something is to be tried again."""
        if not self._failures and not len(self._spool):
            return None
        return max(0.01, self._next_try_s - time.monotonic())

    # ---- both -------------------------------------------------------------------------------

    def _keep(self, record: Record) -> None:
        if not self._spool.append(record):
            with self._count_lock:
                if record.kind == "samples":
                    self._num_dropped_samples += 1
                else:
                    self._num_lost += 1

    def _warn(self, text: str) -> None:
        """The one warning of a run."""
        if not self._warned:
            self._warned = True
            _LOG.warning("%s", text)


def _left_in(queue: SimpleQueue[Record]) -> list[Record]:
    left = []
    while True:
        try:
            left.append(queue.get_nowait())
        except Empty:
            return left


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
