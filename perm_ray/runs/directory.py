"""The run directory: what a run leaves on disk, readable without a server.

    runs/<name>/config.yaml  metrics.jsonl  summary.json  samples/step_000001.jsonl
                samples/heldout_000001.jsonl  checkpoints/  policy/
                policy_best/ (where an earlier step did better on held-out scenarios than the last)
                evaluations.jsonl (held-out and probe metrics)  mlflow_run.json (how far MLflow is)

The driver creates one at start-up (or resumes one) and writes to it after every step. Each write is
atomic except the append to `metrics.jsonl`: a line cut short by a kill is dropped when it is read.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from perm_ray.config.schema import RunConfig
from perm_ray.errors import CheckpointError, ConfigError, DataError
from perm_ray.files import append_row, json_line, write_json_atomic, write_jsonl_atomic, write_text_atomic
from perm_ray.models.adapter import adapter_folder
from perm_ray.tracking.ambiguous import AmbiguityRule
from perm_ray.tracking.mlflow_client import TrackedRun
from perm_ray.tracking.samples import ambiguous_rows, plain_row, sample_rows
from perm_ray.tracking.sinks import Purpose, Sink
from perm_ray.types import RolloutGroup

_BEST_NAME = "heldout.json"


@dataclass(frozen=True, slots=True)
class BestPolicy:
    """The step of a policy, and how it did on the held-out scenarios, as in `summary.json`."""

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
        """Return a new run. ConfigError when another run already has its metrics there."""
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
        return directory

    @classmethod
    def resume(cls, path: Path, config_text: str, step: int) -> RunDirectory:
        """Return the run at `path`, as it was after `step`: metrics and samples of later steps, which are
        going to be run again, are removed."""
        directory = cls(path)
        if not path.is_dir():
            raise CheckpointError(f"There is no run at {path} to resume: check the path.")
        lines = {
            file: [row for row in _rows(file) if row["step"] <= step]
            for file in (directory.metrics_file, directory.evaluations_file)
        }
        directory._prepare(config_text)
        for file, kept in lines.items():
            write_jsonl_atomic(file, kept)
        for samples in directory.samples.glob("*_*.jsonl"):
            if samples.stem.rpartition("_")[2] > f"{step:06d}":
                samples.unlink()
        TrackedRun.rewind(path, {file.name: len(kept) for file, kept in lines.items()})
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
        """Return whether a run has ended here as it should, its policy exported."""
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
        """Return the batch that the run stopped on, for `--replay`."""
        return self.path / f"failed_step_{step:06d}.json"

    @property
    def evaluations_file(self) -> Path:
        return self.path / "evaluations.jsonl"

    def append_metrics(self, step: int, metrics: Mapping[str, float], purpose: Purpose = "train") -> None:
        """Add a row of numbers, with the time; one that is not finite is written as null.

        Those of training steps are in `metrics.jsonl`, those of held-out evaluations and probes in
        `evaluations.jsonl`.
        """
        row: dict[str, object] = {"step": step, "time_ms": time.time_ns() // 1_000_000}
        row.update((name, float(value)) for name, value in metrics.items())
        path = self.metrics_file if purpose == "train" else self.evaluations_file
        append_row(path, json_line(row))

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the rows of training steps, each with its `step`; nulls and times are left out."""
        return [
            {name: value for name, value in row.items() if value is not None and name != "time_ms"}
            for row in _rows(self.metrics_file)
        ]

    def write_samples(self, step: int, groups: Sequence[RolloutGroup], rule: AmbiguityRule) -> None:
        """Write every rollout of a step, for people, and a list of the ambiguous ones if there are any."""
        write_jsonl_atomic(self.samples_file(step), map(plain_row, sample_rows(step, groups, rule)))
        if ambiguous := ambiguous_rows(step, groups, rule):
            write_jsonl_atomic(self.samples / f"ambiguous_{step:06d}.jsonl", map(plain_row, ambiguous))

    def write_heldout(self, step: int, groups: Sequence[RolloutGroup], rule: AmbiguityRule) -> None:
        """Write the rollouts of an evaluation after `step` (0: before training)."""
        rows = map(plain_row, sample_rows(step, groups, rule))
        write_jsonl_atomic(self.samples / f"heldout_{step:06d}.jsonl", rows)

    def write_probes(self, step: int, metrics: Mapping[str, float], outcomes: Sequence[object]) -> None:
        """Write what probing the judges after `step` gave: the metrics, then a row for each outcome."""
        rows = [{"metrics": dict(metrics)}, *outcomes]
        write_jsonl_atomic(self.samples / f"probes_{step:06d}.jsonl", rows)

    def first_probes(self) -> Mapping[str, float]:
        """Return the metrics of the run's first probing; none before it."""
        files = sorted(self.samples.glob("probes_*.jsonl"))
        if not files:
            return {}
        return json.loads(files[0].read_text(encoding="utf-8").split("\n")[0])["metrics"]

    def write_best(self, best: BestPolicy) -> None:
        """Say of the policy that is in `best_policy` how good it is: from now on it counts."""
        write_json_atomic(self.best_policy / _BEST_NAME, asdict(best))

    def best(self) -> BestPolicy | None:
        """Return what `best_policy` holds; None if it holds no whole policy."""
        file = self.best_policy / _BEST_NAME
        return BestPolicy(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def forget_best(self) -> None:
        """Remove it, and its adapter."""
        for folder in (self.best_policy, adapter_folder(self.best_policy)):
            shutil.rmtree(folder, ignore_errors=True)

    def write_summary(self, summary: Mapping[str, object]) -> None:
        write_json_atomic(self.summary_file, summary)


def _rows(file: Path) -> list[dict[str, float]]:
    """Return the whole lines of a metrics file; a last line that a kill cut short is left out."""
    if not file.exists():
        return []
    rows = []
    # Not splitlines(): it would also split at characters that JSON leaves inside a string.
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{file} line {number} is not a JSON object with a step: mend it or remove the line."
            ) from error
    return rows


@dataclass(frozen=True)
class DirectorySink(Sink):
    """Write what happens into the run directory; `rule` says which rollouts are ambiguous."""

    directory: RunDirectory
    rule: AmbiguityRule

    def rollouts(self, step: int, groups: Sequence[RolloutGroup], purpose: Purpose = "train") -> None:
        write = self.directory.write_samples if purpose == "train" else self.directory.write_heldout
        write(step, groups, self.rule)

    def metrics(self, step: int, metrics: Mapping[str, float], purpose: Purpose = "train") -> None:
        self.directory.append_metrics(step, metrics, purpose)
