"""The run directory: what a run leaves on disk, readable without a server.

    runs/<name>/config.yaml  metrics.jsonl  summary.json  samples/step_000001.jsonl
                samples/heldout_000001.jsonl  checkpoints/  policy/
                policy_best/ (where an earlier step did better on held-out scenarios than the last)
                mlflow_run.json  mlflow_spool.jsonl (what MLflow could not be given yet)

The driver creates one at start-up (or resumes one) and writes to it after every step. Each write is
atomic except the append to `metrics.jsonl`: a line cut short by a kill is dropped when it is read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from perm_ray.config.schema import RunConfig
from perm_ray.errors import CheckpointError, ConfigError, DataError
from perm_ray.files import json_line, write_json_atomic, write_jsonl_atomic, write_text_atomic
from perm_ray.models.adapter import adapter_folder
from perm_ray.tracking.ambiguous import AmbiguityRule
from perm_ray.tracking.mlflow_client import TrackedRun
from perm_ray.tracking.samples import ambiguous_rows, sample_rows
from perm_ray.tracking.sinks import Purpose, Sink
from perm_ray.tracking.spool import SPOOL_NAME, Spool
from perm_ray.types import RolloutGroup

_BEST_NAME = "heldout.json"


@dataclass(frozen=True, slots=True)
class BestPolicy:
    """Which step's policy it is, and how it did on the held-out scenarios, as in `summary.json`."""

    step: int
    evaluation: Mapping[str, object]


def run_path(run: RunConfig, now: datetime) -> Path:
    """`<run.dir>/<run.name>`, absolute; a run without a name is called after the time it started."""
    name = run.name or f"perm-{now:%Y%m%d-%H%M%S}"
    return (Path(run.dir).expanduser() / name).absolute()


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run and the writes to them. Made by `create` or `resume`."""

    path: Path

    @classmethod
    def create(cls, path: Path, config_text: str) -> RunDirectory:
        """A new run. ConfigError when another run already has its metrics there."""
        directory = cls(path)
        if directory.metrics_file.exists():
            raise ConfigError(
                f"{path} already holds a run: choose another run.name, or go on with it with --resume."
            )
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file, and the run needs a directory: choose another run.name.")
        directory._prepare(config_text)
        # Of a run that was begun here and got nowhere.
        TrackedRun.forget(path)
        (path / SPOOL_NAME).unlink(missing_ok=True)
        return directory

    @classmethod
    def resume(cls, path: Path, config_text: str, step: int) -> RunDirectory:
        """The run at `path`, as it was after `step`: metrics and samples of later steps, which are
        going to be run again, are removed."""
        directory = cls(path)
        if not path.is_dir():
            raise CheckpointError(f"There is no run at {path} to resume: check the path.")
        rows = [row for row in directory.read_metrics() if row["step"] <= step]
        directory._prepare(config_text)
        write_jsonl_atomic(directory.metrics_file, [{**row, "step": int(row["step"])} for row in rows])
        for samples in directory.samples.glob("*_*.jsonl"):
            if samples.stem.rpartition("_")[2] > f"{step:06d}":
                samples.unlink()
        Spool(path).keep_until(step)
        best = directory.best()
        if best is None or best.step > step:
            directory.forget_best()
        return directory

    def _prepare(self, config_text: str) -> None:
        try:
            self.samples.mkdir(parents=True, exist_ok=True)
            write_text_atomic(self.config_file, config_text)
        except OSError as error:
            raise ConfigError(
                f"The run directory {self.path} cannot be written ({error.strerror}): choose another run.dir."
            ) from error

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def finished(self) -> bool:
        """Whether a run has ended here as it should, its policy exported."""
        if not self.summary_file.is_file():
            return False
        return json.loads(self.summary_file.read_text(encoding="utf-8")).get("status") == "FINISHED"

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def policy(self) -> Path:
        return self.path / "policy"

    @property
    def best_policy(self) -> Path:
        return self.path / "policy_best"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    def samples_file(self, step: int) -> Path:
        return self.samples / f"step_{step:06d}.jsonl"

    def failed_step_file(self, step: int) -> Path:
        """The batch that the run stopped on, for `--replay`."""
        return self.path / f"failed_step_{step:06d}.json"

    def append_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a step's numbers; one that is not finite is written as null."""
        row: dict[str, object] = {"step": step}
        row.update((name, float(value)) for name, value in metrics.items())
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json_line(row))
            file.flush()
            os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, float]]:
        """The rows so far, each with its `step`; nulls are left out."""
        if not self.metrics_file.exists():
            return []
        # Not splitlines(): it would also split at characters that JSON leaves inside a string.
        complete = self.metrics_file.read_text(encoding="utf-8").split("\n")[:-1]
        return [self._parse(number, line) for number, line in enumerate(complete, start=1)]

    def _parse(self, number: int, line: str) -> dict[str, float]:
        try:
            row = json.loads(line)
            return {name: value for name, value in row.items() if value is not None}
        except (ValueError, AttributeError) as error:
            message = f"{self.metrics_file} line {number} is not a JSON object: mend it or remove the line."
            raise DataError(message) from error

    def write_samples(self, step: int, groups: Sequence[RolloutGroup], rule: AmbiguityRule) -> None:
        """Write every rollout of a step, for people, and a list of the ambiguous ones if there are any."""
        write_jsonl_atomic(self.samples_file(step), sample_rows(step, groups, rule))
        if ambiguous := ambiguous_rows(step, groups, rule):
            write_jsonl_atomic(self.samples / f"ambiguous_{step:06d}.jsonl", ambiguous)

    def write_heldout(self, step: int, groups: Sequence[RolloutGroup], rule: AmbiguityRule) -> None:
        """Write the rollouts of an evaluation after `step` (0: before training)."""
        write_jsonl_atomic(self.samples / f"heldout_{step:06d}.jsonl", sample_rows(step, groups, rule))

    def write_probes(self, step: int, metrics: Mapping[str, float], outcomes: Sequence[object]) -> None:
        """Write what probing the judges after `step` gave: the metrics, then a row for each outcome."""
        rows = [{"metrics": dict(metrics)}, *outcomes]
        write_jsonl_atomic(self.samples / f"probes_{step:06d}.jsonl", rows)

    def first_probes(self) -> Mapping[str, float]:
        """The metrics of the run's first probing; none before it."""
        files = sorted(self.samples.glob("probes_*.jsonl"))
        if not files:
            return {}
        return json.loads(files[0].read_text(encoding="utf-8").split("\n")[0])["metrics"]

    def write_best(self, best: BestPolicy) -> None:
        """Say of the policy that is in `best_policy` how good it is: from now on it counts."""
        write_json_atomic(self.best_policy / _BEST_NAME, asdict(best))

    def best(self) -> BestPolicy | None:
        """What `best_policy` holds; None if it holds no whole policy."""
        file = self.best_policy / _BEST_NAME
        return BestPolicy(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def forget_best(self) -> None:
        """Remove it, and its adapter."""
        for folder in (self.best_policy, adapter_folder(self.best_policy)):
            shutil.rmtree(folder, ignore_errors=True)

    def write_summary(self, summary: Mapping[str, object]) -> None:
        write_json_atomic(self.summary_file, summary)


@dataclass(frozen=True)
class DirectorySink(Sink):
    """Write what happens into the run directory; `rule` says which rollouts are ambiguous."""

    directory: RunDirectory
    rule: AmbiguityRule

    def rollouts(self, step: int, groups: Sequence[RolloutGroup], purpose: Purpose = "train") -> None:
        write = self.directory.write_samples if purpose == "train" else self.directory.write_heldout
        write(step, groups, self.rule)

    def metrics(self, step: int, metrics: Mapping[str, float], purpose: Purpose = "train") -> None:
        if purpose == "train":
            self.directory.append_metrics(step, metrics)
