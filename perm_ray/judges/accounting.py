"""Judge failures over the last steps: counted by perspective and cause, and a limit that stops the run."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from perm_ray.errors import JudgeFailureRateError
from perm_ray.types import RolloutGroup, Status

_FAILURES = (Status.FAILED, Status.UNPARSEABLE)


class FailureLimit:
    """Stops a run in which one perspective's judge fails too often.

    Counted per perspective: with four pools, one that always fails is only a quarter of all judgments,
    but it masks every rollout.
    """

    def __init__(self, max_rate: float, window: int) -> None:
        self._max_rate = max_rate
        self._steps: deque[tuple[Counter[str], Counter[_Cause]]] = deque(maxlen=window)

    def state(self) -> list[object]:
        """Return the window's counts, for a checkpoint."""
        return [
            [dict(asked), [[*cause, count] for cause, count in causes.items()]]
            for asked, causes in self._steps
        ]

    def restore(self, state: Sequence[Any]) -> None:
        """Go on with the counts of a checkpoint."""
        for asked, causes in state:
            counted = {_Cause(name, Status(status), why): count for name, status, why, count in causes}
            self._steps.append((Counter(asked), Counter(counted)))

    def check(self, step: int, groups: Sequence[RolloutGroup]) -> None:
        """Count a step's judgments.

        Raises `JudgeFailureRateError` when more than `max_rate` of a perspective's judgments failed over
        the last `window` steps; before the window is full only when every judgment there was failed.
        """
        self._steps.append(_count(groups))
        asked = sum((asked for asked, _ in self._steps), Counter())
        causes = sum((causes for _, causes in self._steps), Counter())
        full = len(self._steps) == self._steps.maxlen
        hopeless = asked.total() > 0 and causes.total() == asked.total()
        for perspective, total in asked.items():
            failed = sum(count for cause, count in causes.items() if cause.perspective == perspective)
            if hopeless or (full and failed > self._max_rate * total):
                listed = "; ".join(f"{count} x {cause}" for cause, count in causes.most_common(8))
                raise JudgeFailureRateError(
                    f"{failed} of {total} judgments of {perspective} failed up to step {step} (counted over "
                    f"{len(self._steps)} steps), more than judges.max_failure_rate = {self._max_rate:g} "
                    f"allows. All failures: {listed}."
                )


class _Cause(NamedTuple):
    perspective: str
    status: Status
    reason: str

    def __str__(self) -> str:
        return f"{self.perspective} {self.status}: {self.reason}"


def _count(groups: Sequence[RolloutGroup]) -> tuple[Counter[str], Counter[_Cause]]:
    """Count the judgments that each perspective was asked for, and the failed ones by cause."""
    asked, causes = Counter[str](), Counter[_Cause]()
    for group in groups:
        for rollout in group.rollouts:
            for judgment in rollout.judgments.values():
                if judgment.status != Status.SKIPPED:
                    asked[judgment.perspective] += 1
                if judgment.status in _FAILURES:
                    causes[_Cause(judgment.perspective, judgment.status, judgment.reason)] += 1
    return asked, causes
