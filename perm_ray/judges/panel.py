"""Ask every judge pool at once: one text goes in, one judgment per perspective comes out.

A text is handed to all pools the moment it is submitted, each with its own queue; equal texts of
a group are judged once. A deterministic run collects first and then asks in a fixed order, one batch
per judge: an answer's last bits depend on what it was computed together with, and then that is always
the same.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import ray
from ray.exceptions import RayError, RayTaskError

from perm_ray.cluster.calls import explain
from perm_ray.judges.judge import ItemKey, Judge, JudgeReply, JudgeTask
from perm_ray.judges.perspective import Perspective
from perm_ray.judges.pool import JudgeEnginePool, JudgePool
from perm_ray.judges.pool_load import CallRecord, Interval, PoolLoad
from perm_ray.types import NO_TOKENS, JudgeItem, Judgment, Scenario, Sections, Status

ITEMS_AT_ONCE = 32  # texts under way in `judge`: enough to keep the engines' batches full


@dataclass(frozen=True, slots=True)
class PanelReport:
    """Every submitted text's judgments by perspective, and how busy each pool was."""

    judgments: Mapping[ItemKey, Mapping[str, Judgment]]
    loads: Mapping[str, PoolLoad]


@dataclass(frozen=True, slots=True)
class _Call:
    pool: JudgePool
    replica: int
    tasks: Sequence[JudgeTask]
    submitted_at: float
    deadline: float


class JudgeBatch:
    """The judgments of what one asker submits, until it collects them. Askers do not see each other's."""

    def __init__(
        self, pools: Mapping[str, JudgePool], perspectives: Mapping[str, Perspective], deterministic: bool
    ) -> None:
        self._pools = pools
        self._perspectives = perspectives
        self._deterministic = deterministic
        self._judgments: defaultdict[ItemKey, dict[str, Judgment]] = defaultdict(dict)
        self._held: defaultdict[str, list[JudgeTask]] = defaultdict(list)
        self._first: dict[tuple[str, str, str], ItemKey] = {}  # pool, scenario, text: who is judged
        self._equal_to: dict[tuple[str, ItemKey], ItemKey] = {}  # pool, who is not: who is
        self._calls: dict[ray.ObjectRef, _Call] = {}
        self._records: defaultdict[str, list[CallRecord]] = defaultdict(list)
        self._homes: defaultdict[str, dict[str, int]] = defaultdict(dict)

    def submit(self, key: ItemKey, scenario: Scenario, sections: Sections) -> None:
        """Have a text judged from every perspective; one whose section is missing skips it."""
        for name, perspective in self._perspectives.items():
            text = getattr(sections, perspective.reads)
            if text is None:
                self._judgments[key][name] = _skipped(perspective, scenario)
            else:
                self._held[name].append(JudgeTask(scenario, key, text))
        if not self._deterministic:
            self._dispatch()
            self._receive_finished()

    def collect(self) -> PanelReport:
        """Wait for the judgments of all that was submitted, with each pool's timeout."""
        self._dispatch()
        while self._calls:
            left = max(0.0, min(call.deadline for call in self._calls.values()) - time.monotonic())
            ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=left)
            if not ready:
                self._give_up_late_calls()
            for ref in ready:
                self._receive(ref, self._calls.pop(ref))
        for (name, key), first in self._equal_to.items():
            self._judgments[key][name] = replace(self._judgments[first][name], tokens=NO_TOKENS)
        return PanelReport(
            judgments={
                key: {name: judgments[name] for name in self._perspectives}
                for key, judgments in self._judgments.items()
            },
            loads={name: self._load(name) for name in self._pools},
        )

    def _dispatch(self) -> None:
        """Send what is held to the pools, each replica its share as one call."""
        for name, tasks in sorted(self._held.items()):
            shares: defaultdict[int, list[JudgeTask]] = defaultdict(list)
            for task in sorted(tasks, key=lambda task: (task.scenario.scenario_id, task.key)):
                first = self._first.setdefault((name, task.scenario.scenario_id, task.text), task.key)
                if first != task.key:
                    self._equal_to[name, task.key] = first
                    continue
                shares[self._pools[name].router.route(task.scenario.scenario_id, self._homes[name])].append(
                    task
                )
            for replica, share in sorted(shares.items()):
                self._send(self._pools[name], replica, share)
        self._held.clear()

    def _send(self, pool: JudgePool, replica: int, tasks: Sequence[JudgeTask]) -> None:
        deadline = time.monotonic() + pool.timeout_s
        self._calls[pool.judge(replica, tasks)] = _Call(pool, replica, tasks, time.time(), deadline)

    def _receive_finished(self) -> None:
        """Take what is there without waiting, so that the routers know which replica is free."""
        if not self._calls:
            return
        ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        for ref in ready:
            self._receive(ref, self._calls.pop(ref))

    def _receive(self, ref: ray.ObjectRef, call: _Call) -> None:
        # Fault boundary: a judge that is gone for good is a failed judgment, and counted.
        try:
            reply: JudgeReply = ray.get(ref)  # pyright: ignore[reportAssignmentType]
        except RayTaskError as error:  # the judge itself is broken, which no count may hide
            raise explain(error, f"judge {call.pool.name}", "judging") from error
        except RayError as error:
            self._settle(call, _failed(call, f"judge lost: {type(error).__name__}"))
            return
        self._settle(call, reply.judgments, reply.worked)

    def _give_up_late_calls(self) -> None:
        now = time.monotonic()
        for ref in [ref for ref, call in self._calls.items() if call.deadline <= now]:
            call = self._calls.pop(ref)
            self._settle(call, _failed(call, f"timeout: no judgment within {call.pool.timeout_s:.0f} s"))

    def _settle(self, call: _Call, judgments: Sequence[Judgment], worked: Sequence[Interval] = ()) -> None:
        name = call.pool.name
        for task, judgment in zip(call.tasks, judgments, strict=True):
            self._judgments[task.key][name] = judgment
        call.pool.router.done(call.replica, len(call.tasks))
        record = CallRecord(len(call.tasks), call.submitted_at, time.time(), tuple(worked))
        self._records[name].append(record)

    def _load(self, name: str) -> PoolLoad:
        shared = sum(pool == name for pool, _ in self._equal_to)
        return PoolLoad(tuple(self._records[name]), shared)


class JudgePanel:
    """Every judge pool and the engines they ask, up or starting; a `Judge`.

    `batch` is for one asker who submits texts as they come (the experience of a step); `judge` for texts
    that are there already (probes, lines of a file).
    """

    def __init__(
        self,
        pools: Mapping[str, JudgePool],
        perspectives: Mapping[str, Perspective],
        deterministic: bool,
        engines: JudgeEnginePool | None = None,
        start_timeout_s: float = 60.0,
    ) -> None:
        self._pools = pools
        self._perspectives = perspectives
        self._deterministic = deterministic
        self.engines = engines  # actors live as long as this does
        self.start_timeout_s = start_timeout_s

    @property
    def perspectives(self) -> Mapping[str, Perspective]:
        return self._perspectives

    def starting(self) -> dict[str, ray.ObjectRef]:
        """Return a call for each engine and judge that returns once it is up."""
        calls = self.engines.starting() if self.engines is not None else {}
        for pool in self._pools.values():
            calls |= pool.starting()
        return calls

    def forget(self) -> None:
        """Have every engine drop its prefix cache, so that a measurement begins with nothing."""
        if self.engines is not None:
            self.engines.forget()

    def batch(self) -> JudgeBatch:
        """Begin a batch of texts of one asker."""
        return JudgeBatch(self._pools, self._perspectives, self._deterministic)

    def judge(self, items: Iterable[JudgeItem]) -> Iterator[tuple[JudgeItem, Mapping[str, Judgment]]]:
        """Yield each item with its judgments by perspective, in order, judged `ITEMS_AT_ONCE` at a time."""
        remaining = iter(items)
        while chunk := list(itertools.islice(remaining, ITEMS_AT_ONCE)):
            batch = self.batch()
            for item in chunk:
                batch.submit((item.item_id, 0), item.scenario, item.sections)
            judgments = batch.collect().judgments
            yield from ((item, judgments[item.item_id, 0]) for item in chunk)


class OwnJudge:
    """A judge object of the user's, in the place of a panel: it is asked for a whole batch at once."""

    start_timeout_s = 0.0

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    @property
    def perspectives(self) -> Mapping[str, Perspective]:
        return self._judge.perspectives

    def starting(self) -> dict[str, ray.ObjectRef]:
        """Return nothing to wait for."""
        return {}

    def batch(self) -> OwnJudge.Batch:
        return self.Batch(self._judge)

    def judge(self, items: Iterable[JudgeItem]) -> Iterable[tuple[JudgeItem, Mapping[str, Judgment]]]:
        return self._judge.judge(items)

    class Batch:
        """The texts of one asker."""

        def __init__(self, judge: Judge) -> None:
            self._judge = judge
            self._keys: list[ItemKey] = []
            self._items: list[JudgeItem] = []

        def submit(self, key: ItemKey, scenario: Scenario, sections: Sections) -> None:
            self._keys.append(key)
            self._items.append(JudgeItem(f"{key[0]}/{key[1]}", scenario, sections))

        def collect(self) -> PanelReport:
            judgments = [judgments for _, judgments in self._judge.judge(self._items)]
            return PanelReport(dict(zip(self._keys, judgments, strict=True)), {})


def _failed(call: _Call, reason: str) -> list[Judgment]:
    return [Judgment(call.pool.name, Status.FAILED, reason=reason) for _ in call.tasks]


def _skipped(perspective: Perspective, scenario: Scenario) -> Judgment:
    return Judgment(
        perspective=perspective.name,
        status=Status.SKIPPED,
        reason=f"the completion has no {perspective.reads}",
        tries=0,
        rubric_digest=perspective.rubric.digest(scenario.language),
    )
