"""Waiting for remote calls: always with a bound, and the first failure ends the wait.

`wait_all` is for a set of calls; rollout streams and judgments have loops of their own, with bounds of
their own, and tell their failures through `explain` as well: who failed, doing what, and why.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from perm_ray.errors import ActorFailedError, ActorTimeoutError, PermRayError


def wait_all(calls: Mapping[str, ray.ObjectRef], *, timeout_s: float, doing: str) -> list[Any]:
    """Return the results of `calls` (role -> reference), in order.

    Raises `ActorFailedError` as soon as one fails and `ActorTimeoutError` when `timeout_s` is over;
    `doing` completes the sentence, e.g. "starting" or "training step 3".
    """
    role_of = {ref: role for role, ref in calls.items()}
    waiting, deadline = list(role_of), time.monotonic() + timeout_s
    results: dict[ray.ObjectRef, Any] = {}
    while waiting:
        left = max(0.0, deadline - time.monotonic())
        done, waiting = ray.wait(waiting, num_returns=1, timeout=left)
        if not done:
            late = ", ".join(role_of[ref] for ref in waiting)
            raise ActorTimeoutError(f"{late} did not answer within {timeout_s:.0f} s while {doing}.")
        results[done[0]] = _fetch(done[0], role_of[done[0]], doing)
    return [results[ref] for ref in calls.values()]


def _fetch(ref: ray.ObjectRef, role: str, doing: str) -> Any:
    """Return the value of a reference that is ready; a failure is told with role, node and cause."""
    try:
        return ray.get(ref, timeout=60)
    except (RayError, GetTimeoutError) as error:
        raise explain(error, role, doing) from error


def explain(error: Exception, role: str, doing: str) -> PermRayError:
    """Turn what Ray raised into one sentence for people. Our own errors come through unchanged."""
    if isinstance(error, RayTaskError):
        if isinstance(error.cause, PermRayError):
            return error.cause
        return ActorFailedError(f"{role} failed while {doing}: {type(error.cause).__name__}: {error.cause}")
    if isinstance(error, RayActorError):
        return ActorFailedError(f"{role} died while {doing}: {_last_words(str(error))}")
    return ActorFailedError(f"{role} could not be reached while {doing}: {type(error).__name__}: {error}")


def _last_words(report: str) -> str:
    """Return why an actor died: the last line of Ray's report, which may hold a traceback."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    return lines[-1].removeprefix("perm_ray.errors.") if lines else "no reason given"
