"""A run directory and a tracker that are told of steps as the loop tells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from perm_ray.config.judges import AmbiguityConfig
from perm_ray.config.schema import Config
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, load_perspective
from perm_ray.runs.directory import DirectorySink, RunDirectory
from perm_ray.tracking.ambiguous import AmbiguityRule
from perm_ray.tracking.mlflow_sender import MlflowSender
from perm_ray.tracking.sinks import Purpose, Sinks
from perm_ray.tracking.tracker import EndState
from perm_ray.types import RolloutGroup


class TrackedSession(Sinks):
    """One session of a run: `start`, steps, `finish`."""

    def __init__(self, config: Config, directory: Path) -> None:
        self.tracker = MlflowSender(config.tracking, "night", directory)
        (directory / "samples").mkdir(parents=True, exist_ok=True)
        rule = AmbiguityRule(AmbiguityConfig(), {n: load_perspective(n) for n in BUILTIN_PERSPECTIVES})
        super().__init__(DirectorySink(RunDirectory(directory), rule), self.tracker)
        self._config = config

    def start(self, resume_id: str | None, contents: Mapping[str, str]) -> None:
        self.tracker.start(self._config, resume_id, contents)

    @property
    def run_id(self) -> str | None:
        return self.tracker.run_id

    def rollouts(self, step: int, groups: Sequence[RolloutGroup], purpose: Purpose = "train") -> None:
        super().rollouts(step, groups, purpose)
        self.metrics(step, {})  # as every step has

    def finish(self, status: EndState) -> None:
        self.tracker.finish(status)
