"""The panel: every judge pool at once. One completion goes in, one judgment per perspective comes out.

A completion is handed to all pools the moment it is submitted, each with its own queue. A
deterministic run collects first and then asks in a fixed order, one batch per judge: an answer's last
bits depend on what it was computed together with, and then that is always the same.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import RayError, RayTaskError

from perm_ray.judges.actor import JudgeTask
from perm_ray.judges.pool import JudgePool
from perm_ray.perspectives.perspective import Perspective
from perm_ray.remote import explain
from perm_ray.types import Completion, Judgment, Scenario, Sections, Status

CompletionKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Call:
    pool: JudgePool
    keys: Sequence[CompletionKey]
    deadline: float


class JudgePanel:
    """Holds the judgments of one step between `submit` and `collect`."""

    def __init__(
        self, pools: Mapping[str, JudgePool], perspectives: Mapping[str, Perspective], deterministic: bool
    ) -> None:
        self.pools = pools
        self._perspectives = perspectives
        self._deterministic = deterministic
        self._reset()

    def submit(self, scenario: Scenario, completion: Completion, sections: Sections) -> None:
        """Have a completion judged from every perspective; one whose section is missing skips it."""
        key = (completion.scenario_id, completion.index)
        for name, perspective in self._perspectives.items():
            text = getattr(sections, perspective.reads)
            if text is None:
                self._judgments[key][name] = _skipped(perspective)
                continue
            replica = self.pools[name].replica_of(scenario.scenario_id)
            self._held[name, replica].append(JudgeTask(scenario, completion.index, text))
        if not self._deterministic:
            self._dispatch()

    def collect(self) -> dict[CompletionKey, dict[str, Judgment]]:
        """Every submitted completion's judgments, by perspective. Waits, with each pool's bound."""
        self._dispatch()
        calls = self._calls
        while calls:
            left = max(0.0, min(call.deadline for call in calls.values()) - time.monotonic())
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=left)
            if not ready:
                self._give_up_late_calls()
            for ref in ready:
                self._receive(ref, calls.pop(ref))
        judgments = {
            key: {name: found[name] for name in self._perspectives} for key, found in self._judgments.items()
        }
        self._reset()
        return judgments

    def _reset(self) -> None:
        self._judgments: defaultdict[CompletionKey, dict[str, Judgment]] = defaultdict(dict)
        self._held: defaultdict[tuple[str, int], list[JudgeTask]] = defaultdict(list)
        self._calls: dict[ray.ObjectRef, _Call] = {}

    def _dispatch(self) -> None:
        for (name, replica), tasks in sorted(self._held.items(), key=lambda item: item[0]):
            tasks.sort(key=lambda task: (task.scenario.scenario_id, task.index))
            pool = self.pools[name]
            keys = [(task.scenario.scenario_id, task.index) for task in tasks]
            self._calls[pool.judge(replica, tasks)] = _Call(pool, keys, time.monotonic() + pool.timeout_s)
        self._held.clear()

    def _receive(self, ref: ray.ObjectRef, call: _Call) -> None:
        # Fault boundary: a judge that is gone for good is a failed judgment, and counted.
        try:
            judgments = ray.get(ref)
        except RayTaskError as error:  # the judge itself is broken, which no count may hide
            raise explain(error, f"judge {call.pool.name}", "judging") from error
        except RayError as error:
            self._fail(call, f"judge lost: {type(error).__name__}")
            return
        for key, judgment in zip(call.keys, judgments, strict=True):
            self._judgments[key][call.pool.name] = judgment

    def _give_up_late_calls(self) -> None:
        now = time.monotonic()
        for ref in [ref for ref, call in self._calls.items() if call.deadline <= now]:
            call = self._calls.pop(ref)
            self._fail(call, f"timeout: no judgment within {call.pool.timeout_s:.0f} s")

    def _fail(self, call: _Call, reason: str) -> None:
        for key in call.keys:
            judgment = Judgment(call.pool.name, Status.FAILED, reason=reason)
            self._judgments[key][call.pool.name] = judgment


def _skipped(perspective: Perspective) -> Judgment:
    return Judgment(
        perspective=perspective.name,
        status=Status.SKIPPED,
        reason=f"the completion has no {perspective.reads}",
        tries=0,
        rubric_digest=perspective.rubric_digest,
    )
