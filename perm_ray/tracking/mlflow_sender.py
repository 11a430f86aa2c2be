"""Send a run to MLflow in the background: training never waits for it and never fails because of it.

The run directory is the queue. One thread tails its files from where MLflow is (`mlflow_run.json` remembers
how far that is), imports MLflow (3 to 5 seconds), opens the run and sends what is new through an explicit
client. While a server is away nothing is lost and nothing grows: what was not sent is sent when it answers
again, at the latest when the run is resumed. One warning says so.

On resume the same MLflow run goes on. Points of steps that are run again appear twice in it (MLflow cannot
delete a point); the artifact `config.yaml` is that of the latest start.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from perm_ray.config.redact import redact, redact_text
from perm_ray.config.schema import Config, TrackingConfig
from perm_ray.tracking.chosen import choose, mean_rewards
from perm_ray.tracking.environment import RunFacts, gather
from perm_ray.tracking.mlflow_client import TrackedRun, cause_of, tracking_uri
from perm_ray.tracking.mlflow_run import MlflowRun, is_refused
from perm_ray.tracking.samples import RolloutRow, parse_row, read_lines
from perm_ray.tracking.sinks import Purpose
from perm_ray.tracking.tracker import EndState, Tracker
from perm_ray.types import RolloutGroup

METRIC_FILES = ("metrics.jsonl", "evaluations.jsonl")
_LOG = logging.getLogger(__name__)
_FIRST_BACKOFF_S = 1.0  # after a failed try; doubled after each one that follows ...
_MAX_BACKOFF_S = 30.0  # ... up to this
_TRIES_BEFORE_WARNING = 3
_END_STATE_S = 5.0  # of the timeout of `finish`, kept for the end state


def open_tracker(
    config: Config, run_name: str, directory: Path, resume_id: str | None, contents: Mapping[str, str]
) -> Tracker:
    """Return the tracker of a run, started: MLflow, or nothing when `tracking.mlflow` is false.

    `contents` names the run's data and models by digest.
    """
    tracker = MlflowSender(config.tracking, run_name, directory) if config.tracking.mlflow else Tracker()
    tracker.start(config, resume_id, contents)
    return tracker


def is_behind(directory: Path) -> bool:
    """Return whether MLflow lacks something of the run in `directory`, the end state included."""
    tracked = TrackedRun.read(directory)
    if tracked is None or not tracked.ended:
        return True
    return any(_num_lines(directory / name) > tracked.sent.get(name, 0) for name in METRIC_FILES)


class MlflowSender(Tracker):
    """A `Tracker`. Creating one does nothing; `start` returns at once."""

    def __init__(self, config: TrackingConfig, run_name: str, directory: Path) -> None:
        self._uri = tracking_uri(config, directory)
        self._config = config
        self._directory = directory.absolute()
        self._run = MlflowRun(config, self._uri, run_name, self._directory)
        self._thread: threading.Thread | None = None
        self._new = threading.Event()  # something was written, or the run ended
        self._status: EndState | None = None
        self._deadline_s = math.inf
        self._tails = [_Tail(self._directory / name) for name in METRIC_FILES]
        # Of the sending thread; the driver's reads them when the run has ended.
        self._facts: RunFacts | None = None
        self._described = False
        self._rewards: dict[str, float] = {}
        self._failures = 0
        self._refused = 0
        self._last_error: Exception | None = None
        self._warned = False

    def start(self, config: Config, resume_id: str | None, contents: Mapping[str, str]) -> None:
        # A daemon: a server that does not answer must not keep the process alive.
        self._thread = threading.Thread(
            target=self._work, args=(config, resume_id, contents), name="mlflow-sender", daemon=True
        )
        self._thread.start()

    @property
    def uri(self) -> str:
        """Return the tracking URI, without credentials."""
        return redact_text(self._uri)

    @property
    def run_id(self) -> str | None:
        """Return the MLflow run; None until MLflow has it. Does not wait: `mlflow_run.json` has it in
        time."""
        return self._run.run_id

    def metrics(self, step: int, metrics: Mapping[str, float], purpose: Purpose = "train") -> None:
        """Wake the sending thread: the run directory has the numbers."""
        del step, metrics, purpose
        self._new.set()

    def rollouts(self, step: int, groups: Sequence[RolloutGroup], purpose: Purpose = "train") -> None:
        """Nothing: the rows are sent with their step's metrics."""

    def finish(self, status: EndState, timeout_s: float = 15.0) -> None:
        if self._thread is None:
            return
        self._deadline_s = time.monotonic() + timeout_s - _END_STATE_S
        self._status = status
        self._new.set()
        self._thread.join(timeout_s)
        tracked = TrackedRun.read(self._directory)
        missing = self._unsent()
        if missing or self._refused or tracked is None or not tracked.ended:
            ended = "" if tracked is not None and tracked.ended else ", the end state among them"
            self._warn(
                f"MLflow at {self.uri} did not take {missing + self._refused} records{ended} "
                f"({cause_of(self._last_error)}). The run directory has them all: "
                f"perm-ray train --resume {self._directory} sends what is missing."
            )

    # ---- the sending thread -----------------------------------------------------------------

    def _work(self, config: Config, resume_id: str | None, contents: Mapping[str, str]) -> None:
        while True:
            status = self._status
            self._new.clear()
            sent = self._attempt(config, resume_id, contents)
            if status is not None:
                self._deadline_s = math.inf  # `finish` bounds the end state
                if sent or not self._failures:
                    self._end(status)
                return
            if not self._failures:
                self._new.wait()
                continue
            backoff_s = min(_FIRST_BACKOFF_S * 2 ** (self._failures - 1), _MAX_BACKOFF_S)
            until_s = time.monotonic() + backoff_s
            while self._status is None and (left := until_s - time.monotonic()) > 0:
                self._new.wait(left)
                self._new.clear()

    def _attempt(self, config: Config, resume_id: str | None, contents: Mapping[str, str]) -> bool:
        """Send what is new. Fault boundary, the tracking outage: False when it is to be tried again."""
        try:
            self._run.open(resume_id)
            if not self._described:
                self._facts = self._facts or gather(config, contents)
                self._unless_refused(partial(self._run.describe, self._facts))
                self._described = True
            for tail in self._tails:
                self._send_file(tail)
        except Exception as error:
            self._last_error = error
            self._failures += 1
            if self._failures == _TRIES_BEFORE_WARNING:
                self._warn(
                    f"MLflow at {self.uri} is out of reach ({cause_of(error)}). Training goes on; the run "
                    "directory keeps what MLflow should get until it answers, at the latest when the run is "
                    f"resumed: perm-ray train --resume {self._directory}"
                )
            return False
        self._failures = 0
        return True

    def _send_file(self, tail: _Tail) -> None:
        tail.skip_to(self._run.sent(tail.path.name))
        while (line := tail.next_line()) is not None:
            if time.monotonic() > self._deadline_s:
                raise TimeoutError("the run ended before all was sent")
            self._unless_refused(partial(self._send_line, tail.path.name, json.loads(line)))
            tail.advance(line)
            self._run.note_sent(tail.path.name, tail.number)

    def _send_line(self, name: str, row: Mapping[str, float | None]) -> None:
        step = int(row["step"] or 0)
        time_ms = int(row.get("time_ms") or time.time_ns() // 1_000_000)
        kept = {key: v for key, v in row.items() if v is not None and key not in ("step", "time_ms")}
        self._run.send_metrics(step, time_ms, kept)
        every = self._config.samples.every
        if name != METRIC_FILES[0] or not every or step % every:
            return
        rows = read_lines(self._directory / "samples" / f"step_{step:06d}.jsonl", _parse).rows
        chosen = choose(rows, self._rewards, self._config.samples.count)
        self._rewards |= mean_rewards(rows)
        self._run.send_rollouts(step, time_ms, chosen)

    def _unless_refused(self, send: Callable[[], None]) -> None:
        """Send, and count what MLflow will never take, so that it is in nobody's way."""
        try:
            send()
        except Exception as error:
            if not is_refused(error):
                raise
            self._last_error = error
            self._refused += 1

    def _end(self, status: EndState) -> None:
        try:
            self._run.end(status)
        except Exception as error:  # fault boundary: `finish` says that the end state is missing
            self._last_error = error

    # ---- both -------------------------------------------------------------------------------

    def _unsent(self) -> int:
        tracked = TrackedRun.read(self._directory)
        sent = tracked.sent if tracked is not None else {}
        lines = {name: _num_lines(self._directory / name) for name in METRIC_FILES}
        return sum(max(0, count - sent.get(name, 0)) for name, count in lines.items())

    def _warn(self, text: str) -> None:
        """Log the one warning of a run."""
        if not self._warned:
            self._warned = True
            _LOG.warning("%s", text)


class _Tail:
    """A file that grows by whole lines, read from where the reader is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0  # of lines before `_position`
        self._position = 0

    def skip_to(self, number: int) -> None:
        """Go on behind the first `number` lines."""
        while self.number < number and (line := self.next_line()) is not None:
            self.advance(line)

    def next_line(self) -> bytes | None:
        """Return the next whole line; None at the end, or before a line that is being written."""
        if not self.path.is_file():
            return None
        with self.path.open("rb") as file:
            file.seek(self._position)
            line = file.readline()
        return line if line.endswith(b"\n") else None

    def advance(self, line: bytes) -> None:
        """Go on behind `line`, which was read."""
        self._position += len(line)
        self.number += 1


def _parse(row: dict[str, Any]) -> RolloutRow:
    redacted = redact(row)
    assert isinstance(redacted, dict)
    return parse_row(redacted)


def _num_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0
