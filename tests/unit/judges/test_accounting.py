"""When too many judgments fail a run stops, and says which judges failed and of what."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from perm_ray.errors import JudgeFailureRateError, RunError
from perm_ray.judges.accounting import FailureLimit
from perm_ray.judges.perspective import Scale
from perm_ray.judges.scoring import ScoreError, expected_score
from perm_ray.types import Judgment, Rollout, RolloutGroup, Sections, Status
from tests.support.fakes import fake_completion, fake_prompt


def judged(perspective: str, status: Status, reason: str = "") -> Judgment:
    return Judgment(perspective, status, 3.0 if status == Status.OK else None, reason=reason)


def step_of(judgments: Sequence[Judgment]) -> list[RolloutGroup]:
    """One group in which each judgment has a rollout of its own."""
    rollouts = tuple(
        Rollout(fake_completion("a", i), Sections("x", "y"), {judgment.perspective: judgment}, None)
        for i, judgment in enumerate(judgments)
    )
    return [RolloutGroup(fake_prompt("a"), rollouts, (0.0,) * len(rollouts))]


def mixed(ok: int, failed: int, skipped: int = 0) -> list[RolloutGroup]:
    return step_of(
        [judged("resonation", Status.OK)] * ok
        + [judged("resonation", Status.FAILED, "timeout")] * failed
        + [judged("resonation", Status.SKIPPED, "no analysis")] * skipped
    )


def test_nothing_happens_until_the_window_is_full() -> None:
    limit = FailureLimit(max_rate=0.5, window=3)
    limit.check(1, mixed(ok=1, failed=9))
    limit.check(2, mixed(ok=1, failed=9))
    with pytest.raises(JudgeFailureRateError, match="27 of 30 judgments of resonation failed up to step 3"):
        limit.check(3, mixed(ok=1, failed=9))


def test_a_rate_at_the_limit_is_allowed() -> None:
    limit = FailureLimit(max_rate=0.5, window=1)
    limit.check(1, mixed(ok=5, failed=5))
    with pytest.raises(JudgeFailureRateError):
        limit.check(2, mixed(ok=4, failed=5))


def test_the_rate_is_that_of_the_window_not_of_its_last_step() -> None:
    limit = FailureLimit(max_rate=0.5, window=2)
    limit.check(1, mixed(ok=10, failed=0))
    limit.check(2, mixed(ok=1, failed=9))
    with pytest.raises(JudgeFailureRateError, match="18 of 20"):
        limit.check(3, mixed(ok=1, failed=9))  # step 1 has left the window


def test_old_failures_leave_the_window() -> None:
    limit = FailureLimit(max_rate=0.5, window=2)
    limit.check(1, mixed(ok=1, failed=9))
    limit.check(2, mixed(ok=10, failed=0))
    for step in range(3, 10):
        limit.check(step, mixed(ok=5, failed=5))


def test_a_first_step_in_which_nothing_could_be_judged_stops_at_once() -> None:
    with pytest.raises(JudgeFailureRateError, match="16 of 16 judgments of resonation failed up to step 1"):
        FailureLimit(max_rate=0.5, window=4).check(1, mixed(ok=0, failed=16))


def test_skipped_judgments_were_not_asked_for() -> None:
    limit = FailureLimit(max_rate=0.5, window=1)
    limit.check(1, mixed(ok=0, failed=0, skipped=8))  # nothing asked, nothing failed
    limit.check(2, mixed(ok=1, failed=1, skipped=8))
    with pytest.raises(JudgeFailureRateError, match="2 of 3 judgments of resonation failed"):
        limit.check(3, mixed(ok=1, failed=2, skipped=8))


def test_a_step_without_rollouts_is_no_failure() -> None:
    FailureLimit(max_rate=0.1, window=1).check(1, [])


def test_the_message_counts_each_cause_by_perspective_the_commonest_first() -> None:
    groups = step_of(
        [judged("reception", Status.FAILED, "timeout: no answer within 300 s")] * 2
        + [judged("bystander", Status.UNPARSEABLE, "expected 5 lines")] * 3
        + [judged("expression", Status.FAILED, "timeout: no answer within 300 s")]
        + [judged("resonation", Status.OK)] * 2
    )
    with pytest.raises(JudgeFailureRateError) as caught:
        FailureLimit(max_rate=0.25, window=1).check(7, groups)
    assert isinstance(caught.value, RunError)
    assert str(caught.value) == (
        "2 of 2 judgments of reception failed up to step 7 (counted over 1 steps), more than "
        "judges.max_failure_rate = 0.25 allows. All failures: 3 x bystander unparseable: expected 5 lines; "
        "2 x reception failed: timeout: no answer within 300 s; "
        "1 x expression failed: timeout: no answer within 300 s."
    )


def test_one_perspective_that_always_fails_stops_the_run() -> None:
    """It masks every rollout: nothing is learned, however well the other three answer."""
    limit = FailureLimit(max_rate=0.5, window=1)
    three = [judged(name, Status.OK) for name in ("resonation", "expression", "reception")]
    with pytest.raises(JudgeFailureRateError, match="bystander"):
        limit.check(1, step_of([*three, judged("bystander", Status.UNPARSEABLE, "expected 5 lines")]))


def test_a_cause_is_counted_once_whatever_numbers_its_reasons_hold() -> None:
    judgments = []
    for logprob in (-8.0, -9.0, -10.0):
        with pytest.raises(ScoreError) as caught:
            expected_score(dict.fromkeys(range(1, 6), logprob), Scale(1, 5), min_mass=0.2)
        judgments.append(judged("resonation", Status.UNPARSEABLE, caught.value.reason))
    with pytest.raises(JudgeFailureRateError, match="3 x resonation unparseable"):
        FailureLimit(max_rate=0.5, window=1).check(1, step_of(judgments))
