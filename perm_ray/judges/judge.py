"""Judge texts from one perspective: put its questions to an engine, round by round, and read the answers.

Pure but for the asking, which `actor.py` does for it. Here a failure becomes data: whatever goes wrong
with a judgment ends as a status and a reason in it, never as a number and never as an exception that
would lose its siblings.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from perm_ray.config.judges import JudgePoolConfig
from perm_ray.judges import modes
from perm_ray.judges.asking import Answer, EngineReply, Query, QueryFailed, Question
from perm_ray.judges.guard import make_fence
from perm_ray.judges.modes import Steps
from perm_ray.judges.perspective import Perspective
from perm_ray.judges.pool_load import Interval
from perm_ray.judges.scoring import ScoreError
from perm_ray.types import NO_TOKENS, JudgeItem, Judgment, Scenario, Status, TokenUsage

ItemKey = tuple[str, int]  # a completion: its scenario and index; an item of a file: its id and 0


@dataclass(frozen=True, slots=True)
class JudgeTask:
    """One text to judge: the section that the perspective reads of item `key`."""

    scenario: Scenario
    key: ItemKey
    text: str


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """One judgment for each task, in order, and when the engine worked on them: intervals in seconds
    since the epoch, by the engine's own clock."""

    judgments: Sequence[Judgment]
    worked: Sequence[Interval]


class NoReplyError(Exception):
    """The engine did not reply to any retry; `reason` says what became of the last one."""

    def __init__(self, reason: str, tries: int) -> None:
        super().__init__(reason, tries)
        self.reason = reason
        self.tries = tries


class Judge(Protocol):
    """Anything that judges texts: a panel of pools, a reward model, a rule.

    `perspectives` names its judgments.
    `perm_ray.train(..., judges=mine)` takes any object of this shape.
    """

    @property
    def perspectives(self) -> Mapping[str, Perspective]: ...

    def judge(self, items: Iterable[JudgeItem]) -> Iterable[tuple[JudgeItem, Mapping[str, Judgment]]]:
        """Yield each item, in order, with its judgments by perspective."""
        ...


def question_of(
    perspective: Perspective, config: JudgePoolConfig, scenario: Scenario, text: str, seed: int | str
) -> Question:
    """Return what a pool's judges are asked about a text.

    A fence that is the same for a whole group lets a weak judge compare its texts under equal conditions;
    one that is new for each text is harder to guess. The policy sees neither.
    """
    own = (text, perspective.name) if config.fence == "call" else ()
    return perspective.question(scenario, text, make_fence(seed, scenario.scenario_id, *own))


class Asker(Protocol):
    """Put a batch of queries to an engine; returns its reply and how many tries it took, or raises
    `NoReplyError`."""

    async def __call__(self, queries: Sequence[Query], /) -> tuple[EngineReply, int]: ...


@dataclass
class _Case:
    """One task on its way to its outcome: a reading, an answer without a score, or (str) no answer."""

    task: JudgeTask
    steps: Steps
    queries: Sequence[Query]
    attempt: int = 1
    tries: int = 0
    tokens: TokenUsage = NO_TOKENS
    outcome: Judgment | ScoreError | str | None = None
    latency_s: float = 0.0


@dataclass(frozen=True)
class PromptedJudge:
    """One perspective's judge, a prompted language model. `model` names it; `supports_prefill` says whether
    its engine can go on from a given beginning of its turn (`modes.py`)."""

    perspective: Perspective
    config: JudgePoolConfig
    model: str
    seed: int
    supports_prefill: bool

    async def judge(self, tasks: Sequence[JudgeTask], ask: Asker) -> JudgeReply:
        """Judge `tasks` together: in each round all their queries go to the engine as one batch."""
        start = time.monotonic()
        cases = [_Case(task, *self._begin(task, attempt=1)) for task in tasks]
        worked: list[Interval] = []
        waiting = cases
        while waiting:
            worked += await _one_round(waiting, ask)
            for case in waiting:
                if case.outcome is not None:
                    case.latency_s = time.monotonic() - start
                    self._ask_again(case)
            waiting = [case for case in waiting if case.outcome is None]
        return JudgeReply([self._judgment(case) for case in cases], worked)

    def _begin(self, task: JudgeTask, attempt: int) -> tuple[Steps, Sequence[Query]]:
        question = question_of(self.perspective, self.config, task.scenario, task.text, self.seed)
        scoring = self.config.scoring
        seed = self.seed + (attempt - 1) * scoring.num_samples
        steps = modes.begin(question, scoring, supports_prefill=self.supports_prefill, seed=seed)
        return steps, next(steps)

    def _ask_again(self, case: _Case) -> None:
        """Begin anew with an answer that held no score, where a sampled one may differ."""
        sampled = not self.supports_prefill or self.config.scoring.mode == "sampled"
        if sampled and isinstance(case.outcome, ScoreError) and case.attempt <= self.config.retries:
            case.outcome = None
            case.attempt += 1
            case.steps, case.queries = self._begin(case.task, case.attempt)

    def _judgment(self, case: _Case) -> Judgment:
        common: dict[str, Any] = {
            "perspective": self.perspective.name,
            "tries": case.tries,
            "latency_s": case.latency_s,
            "tokens": case.tokens,
            "judge": self.model,
            "rubric_digest": self.perspective.rubric.digest(case.task.scenario.language),
        }
        match case.outcome:
            case Judgment() as judgment:
                return replace(judgment, **common)
            case ScoreError() as error:
                return Judgment(status=Status.UNPARSEABLE, mass=error.mass, reason=error.reason, **common)
            case why:
                return Judgment(status=Status.FAILED, reason=str(why), **common)


async def _one_round(cases: Sequence[_Case], ask: Asker) -> list[Interval]:
    """Put every case's asks to the engine and advance each by its answers."""
    try:
        reply, tries = await ask([query for case in cases for query in case.queries])
    except NoReplyError as error:
        for case in cases:
            case.outcome, case.tries = error.reason, max(case.tries, error.tries)
        return []
    answers = iter(reply.answers)
    for case in cases:
        own = [next(answers) for _ in case.queries]
        case.tries = max(case.tries, tries, case.attempt)
        case.tokens = sum((answer.tokens for answer in own), case.tokens)
        _advance(case, own)
    return [(reply.started_at, reply.finished_at)]


def _advance(case: _Case, answers: Sequence[Answer]) -> None:
    """Send a case its answers: it asks on, or comes to an outcome."""
    try:
        case.queries = case.steps.send(answers)
    except StopIteration as end:
        case.outcome = end.value
    except ScoreError as error:
        case.outcome = error
    except QueryFailed as error:
        case.outcome = str(error)
