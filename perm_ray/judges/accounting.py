"""Judge failures over the last steps: counted by perspective and cause, and a limit that stops the run."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from perm_ray.errors import JudgeFailureRateError
from perm_ray.types import RolloutGroup, Status

_FAILURES = (Status.FAILED, Status.UNPARSEABLE)


class FailureLimit:
    """Raises when more than `max_rate` of the judgments of the last `window` steps failed."""

    def __init__(self, max_rate: float, window: int) -> None:
        self._max_rate = max_rate
        self._steps: deque[tuple[int, Counter[str]]] = deque(maxlen=window)

    def check(self, step: int, groups: Sequence[RolloutGroup]) -> None:
        """Count a step's judgments.

        Raises `JudgeFailureRateError` once the window is full and over the limit, or at once when
        nothing of a step could be judged."""
        asked, causes = _count(groups)
        self._steps.append((asked, causes))
        total = sum(asked for asked, _ in self._steps)
        failed = sum((causes for _, causes in self._steps), Counter())
        over = total > 0 and failed.total() > self._max_rate * total
        nothing_left = asked > 0 and causes.total() == asked
        if over and (len(self._steps) == self._steps.maxlen or nothing_left):
            listed = "; ".join(f"{count} x {cause}" for cause, count in failed.most_common(8))
            raise JudgeFailureRateError(
                f"{failed.total()} of {total} judgments failed in the last {len(self._steps)} steps up to "
                f"step {step}, more than judges.max_failure_rate = {self._max_rate:g} allows: {listed}."
            )


def _count(groups: Sequence[RolloutGroup]) -> tuple[int, Counter[str]]:
    """How many judgments were asked for, and the failed ones by perspective and cause."""
    asked, causes = 0, Counter[str]()
    for group in groups:
        for rollout in group.rollouts:
            for judgment in rollout.judgments.values():
                asked += judgment.status != Status.SKIPPED
                if judgment.status in _FAILURES:
                    causes[f"{judgment.perspective} {judgment.status}: {judgment.reason}"] += 1
    return asked, causes
