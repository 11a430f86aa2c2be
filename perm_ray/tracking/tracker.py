"""What a driver needs of an experiment tracker.

`MlflowTracker` is one; `NullTracker` stands in when `tracking.mlflow` is false. No
call may wait on a network or raise because of one: the run directory has every number as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from perm_ray.config.schema import Config
from perm_ray.types import RolloutGroup

EndState = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Called in this order: start, log_step for every step, finish. `uri` is where a person looks."""

    @property
    def uri(self) -> str | None: ...

    def start(self, config: Config, resume_id: str | None, contents: Mapping[str, str]) -> None:
        """Open a run, or go on with the run `resume_id`. `contents` names its data and models by digest."""
        ...

    @property
    def run_id(self) -> str | None:
        """The tracker's own name for the run, kept in checkpoints; None when there is none."""
        ...

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def log_rollouts(self, step: int, groups: Sequence[RolloutGroup]) -> None:
        """Show people some of a step's rollouts."""
        ...

    def finish(self, status: EndState) -> None:
        """Send what is left, within a bound, and record how the run ended."""
        ...


class NullTracker:
    """Tracks nothing."""

    uri: str | None = None
    run_id: str | None = None

    def start(self, config: Config, resume_id: str | None, contents: Mapping[str, str]) -> None:
        del config, resume_id, contents

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        del step, metrics

    def log_rollouts(self, step: int, groups: Sequence[RolloutGroup]) -> None:
        del step, groups

    def finish(self, status: EndState) -> None:
        del status
