"""A judge: one perspective's actor, which asks an engine about completions and reads its answers.

Runs remotely. Here a failure becomes data: whatever goes wrong with a judgment ends as a status and a
reason in it, never as a number and never as an exception that would lose its siblings.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from perm_ray.config.schema import JudgePoolConfig
from perm_ray.judges.engine import Answer, DigitAnswer, Refused, TextAnswer
from perm_ray.perspectives.guard import make_fence
from perm_ray.perspectives.perspective import Ask, ConstrainedText, ExpectedDigit, Perspective
from perm_ray.perspectives.scoring import Reading, ScoreError, criteria_score, expected_score
from perm_ray.types import Judgment, Scenario, Status


@dataclass(frozen=True, slots=True)
class JudgeTask:
    """One text to judge: the section that the perspective reads of completion `index`."""

    scenario: Scenario
    index: int
    text: str


class JudgeActor:
    """Made an actor by `pool.py`; light, since the model is in the engine it asks."""

    def __init__(
        self, perspective: Perspective, config: JudgePoolConfig, engine_name: str, model: str, seed: int
    ) -> None:
        self._perspective = perspective
        self._config = config
        self._engine: Any = ray.get_actor(engine_name)
        self._model = model
        self._seed = seed

    async def ready(self) -> None:
        """Returns once the judge has found its engine."""

    async def judge(self, tasks: Sequence[JudgeTask]) -> list[Judgment]:
        """One judgment for each task, in order."""
        start = time.monotonic()
        asks = [self._ask(task) for task in tasks]
        answers, tries, failure = await self._answers(asks)
        latency_s = time.monotonic() - start
        common = {
            "perspective": self._perspective.name,
            "tries": tries,
            "latency_s": latency_s,
            "judge": self._model,
            "rubric_digest": self._perspective.rubric_digest,
        }
        if answers is None:
            return [Judgment(status=Status.FAILED, reason=failure, **common) for _ in tasks]
        return [
            judgment_of(self._perspective, ask, answer, self._config.min_mass, common)
            for ask, answer in zip(asks, answers, strict=True)
        ]

    def _ask(self, task: JudgeTask) -> Ask:
        # One fence for all completions of a scenario: the policy never sees it, a group is judged under
        # equal conditions (another fence moves a weak judge's score), and the shared prefix is longer.
        fence = make_fence(self._seed, task.scenario.scenario_id)
        return self._perspective.ask(task.scenario, task.text, fence)

    async def _answers(self, asks: Sequence[Ask]) -> tuple[list[Answer] | None, int, str]:
        """Answers (None when every try failed), how many tries it took, and the last failure."""
        failure = ""
        for attempt in range(1, self._config.retries + 2):
            # Fault boundary: an engine that dies, hangs or refuses is a failed judgment, and counted.
            call = self._engine.answer.remote(asks)
            try:
                return await asyncio.wait_for(call, self._config.timeout_s), attempt, ""
            except TimeoutError:
                ray.cancel(call)  # an engine that is slow must not also work for nobody
                failure = f"timeout: no answer within {self._config.timeout_s:.0f} s"
            except RayError as error:
                cause = getattr(error, "cause", None) or error
                lines = str(cause).strip().splitlines() or ["no reason given"]
                failure = f"{type(cause).__name__}: {lines[-1]}"
        return None, self._config.retries + 1, failure


def judgment_of(
    perspective: Perspective, ask: Ask, answer: Answer, min_mass: float, common: dict[str, Any]
) -> Judgment:
    """Read one answer; one that holds no score is `unparseable`."""
    if isinstance(answer, Refused):
        return Judgment(status=Status.FAILED, reason=answer.reason, **common)
    try:
        reading = _read(perspective, ask, answer, min_mass)
    except ScoreError as error:
        return Judgment(status=Status.UNPARSEABLE, mass=error.mass, reason=error.reason, **common)
    return Judgment(
        status=Status.OK,
        score=reading.score,
        mass=reading.mass,
        distribution=reading.distribution,
        criteria=reading.criteria,
        **common,
    )


def _read(perspective: Perspective, ask: Ask, answer: Answer, min_mass: float) -> Reading:
    match ask, answer:
        case ExpectedDigit(), DigitAnswer(logprobs):
            return expected_score(logprobs, perspective.scale, min_mass)
        case ConstrainedText(), TextAnswer(text):
            return criteria_score(text, ask.criteria, ask.criterion_scale)
        case _:
            raise TypeError(f"{type(ask).__name__} was answered with {type(answer).__name__}")
