"""Define an experiment tracker: a sink with a beginning and an end.

`MlflowTracker` is one; `Tracker` itself stands in when `tracking.mlflow` is false. No call
 may wait on a network or raise because of one: the run directory has every number as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from perm_ray.config.schema import Config
from perm_ray.tracking.sinks import Sink

EndState = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Sink):
    """Track nothing; the base of a sink with a beginning and an end: `start`, then records, then `finish`.

    `uri` is where a person looks. `run_id` is the tracker's own name for the run, kept in checkpoints.
    """

    @property
    def uri(self) -> str | None:
        return None

    @property
    def run_id(self) -> str | None:
        return None

    def start(self, config: Config, resume_id: str | None, contents: Mapping[str, str]) -> None:
        """Open a run, or go on with the run `resume_id`. `contents` names its data and models by digest."""

    def finish(self, status: EndState) -> None:
        """Send what is left, within a bound, and record how the run ended."""
