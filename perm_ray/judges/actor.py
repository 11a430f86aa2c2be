"""A judge as a Ray actor: the remote shell around `judge.py`, which asks an engine by its name."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from perm_ray.judges.asking import EngineReply, Query
from perm_ray.judges.judge import JudgeReply, JudgeTask, NoReplyError, PromptedJudge


class JudgeActor:
    """Made an actor by `pool.py`; light, since the model is in the engine it asks."""

    def __init__(self, judge: PromptedJudge, engine_name: str) -> None:
        self._judge = judge
        self._engine: Any = ray.get_actor(engine_name)

    async def ready(self) -> None:
        """Returns once the judge has found its engine."""

    async def judge(self, tasks: Sequence[JudgeTask]) -> JudgeReply:
        """Return one judgment for each task, in order."""
        return await self._judge.judge(tasks, self._ask)

    async def _ask(self, queries: Sequence[Query], /) -> tuple[EngineReply, int]:
        config = self._judge.config
        failure = ""
        for attempt in range(1, config.retries + 2):
            # Fault boundary: an engine that dies, hangs or breaks is a failed judgment, and counted.
            call = self._engine.answer.remote(queries)
            try:
                return await asyncio.wait_for(call, config.timeout_s), attempt
            except TimeoutError:
                ray.cancel(call)  # an engine that is slow must not also work for nobody
                failure = f"timeout: no answer within {config.timeout_s:.0f} s"
            except RayError as error:
                cause = getattr(error, "cause", None) or error
                lines = str(cause).strip().splitlines() or ["no reason given"]
                failure = f"{type(cause).__name__}: {lines[-1]}"
        raise NoReplyError(failure, config.retries + 1)
