"""A judge's rounds: many questions together, and every way in which one of them can fail."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from perm_ray.config.judges import JudgePoolConfig, ScoringConfig
from perm_ray.judges.asking import (
    Answer,
    EngineReply,
    Query,
    QueryFailed,
    ScoreAnswer,
    ScoreQuery,
    TextAnswer,
    TextQuery,
)
from perm_ray.judges.judge import JudgeTask, NoReplyError, PromptedJudge
from perm_ray.judges.perspective import load_perspective
from perm_ray.types import Judgment, Status, TokenUsage
from tests.support.fakes import fake_prompt

TASKS = [JudgeTask(fake_prompt("a").scenario, ("a", index), f"text {index}") for index in range(3)]
Reply = Callable[[Query], Answer]


def judge_of(
    mode: Any = "expected", supports_prefill: bool = True, fence: Any = "call", retries: int = 1
) -> PromptedJudge:
    config = JudgePoolConfig(scoring=ScoringConfig(mode=mode), fence=fence, retries=retries)
    return PromptedJudge(load_perspective("expression"), config, "some-model", 42, supports_prefill)


class Engine:
    """Answers with `reply`; remembers every batch."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.batches: list[list[Query]] = []

    async def __call__(self, asks: Sequence[Query], /) -> tuple[EngineReply, int]:
        self.batches.append(list(asks))
        began = float(len(self.batches))
        return EngineReply([self._reply(ask) for ask in asks], began, began + 0.5), 1


def judged(judge: PromptedJudge, engine: Engine) -> list[Judgment]:
    return list(asyncio.run(judge.judge(TASKS, engine)).judgments)


def content(ask: Query) -> str:
    return ask.messages[-1].content


def four(ask: Query) -> Answer:
    if isinstance(ask, TextQuery):
        return TextAnswer("warm and fitting", tokens=TokenUsage(10, 8, 5))
    return ScoreAnswer({v: 0.0 if v == 4 else -math.inf for v in ask.values}, TokenUsage(20, 16, 1))


def test_questions_advance_together_a_batch_for_each_round() -> None:
    engine = Engine(four)
    reply = asyncio.run(judge_of("reasoned").judge(TASKS, engine))
    assert [len(batch) for batch in engine.batches] == [3, 3]
    assert [isinstance(batch[0], ScoreQuery) for batch in engine.batches] == [False, True]
    assert reply.worked == [(1.0, 1.5), (2.0, 2.5)]
    first = reply.judgments[0]
    assert (first.status, first.score, first.sampled, first.reason) == (
        Status.OK,
        4.0,
        4.0,
        "warm and fitting",
    )
    assert (first.tries, first.tokens) == (1, TokenUsage(30, 24, 6))
    assert (first.judge, first.rubric_digest) == (
        "some-model",
        load_perspective("expression").rubric.digest(),
    )
    assert first.latency_s > 0


def test_one_refused_text_fails_alone() -> None:
    engine = Engine(lambda ask: QueryFailed("too long") if "text 1" in content(ask) else four(ask))
    first, second, third = judged(judge_of(), engine)
    assert [first.status, third.status] == [Status.OK, Status.OK]
    assert (second.status, second.score, second.reason) == (Status.FAILED, None, "too long")


def test_an_answer_without_a_score_is_unparseable_and_keeps_its_mass() -> None:
    def unsure(ask: Query) -> Answer:
        assert isinstance(ask, ScoreQuery)
        return ScoreAnswer(dict.fromkeys(ask.values, math.log(0.01)))

    for judgment in judged(judge_of(), Engine(unsure)):
        assert (judgment.status, judgment.score) == (Status.UNPARSEABLE, None)
        assert judgment.mass == pytest.approx(0.05)


def test_an_engine_that_never_replies_fails_them_all_and_says_why() -> None:
    async def gone(asks: Sequence[Query], /) -> tuple[EngineReply, int]:
        raise NoReplyError("timeout: no answer within 3 s", 2)

    reply = asyncio.run(judge_of().judge(TASKS, gone))
    assert [judgment.status for judgment in reply.judgments] == [Status.FAILED] * 3
    assert {judgment.reason for judgment in reply.judgments} == {"timeout: no answer within 3 s"}
    assert {judgment.tries for judgment in reply.judgments} == {2}
    assert reply.worked == []


def test_a_chat_answer_without_a_score_is_asked_for_once_more_with_another_seed() -> None:
    seeds: dict[str, list[int | None]] = {}

    def reply(ask: Query) -> Answer:
        assert isinstance(ask, TextQuery)
        key = next(task.text for task in TASKS if task.text in content(ask))
        seeds.setdefault(key, []).append(ask.seed)
        good = key == "text 0" or len(seeds[key]) > 1
        return TextAnswer("Score: 3" if good and key != "text 2" else "lovely")

    first, second, third = judged(judge_of("reasoned", supports_prefill=False), Engine(reply))
    assert (first.score, first.tries) == (3.0, 1)
    assert (second.score, second.tries) == (3.0, 2)
    assert (third.status, third.tries) == (Status.UNPARSEABLE, 2)
    assert len(set(seeds["text 1"])) == 2


def test_greedy_decoding_is_not_asked_again() -> None:
    engine = Engine(lambda _: ScoreAnswer(dict.fromkeys(range(1, 6), -9.0)))
    judged(judge_of(), engine)
    assert len(engine.batches) == 1


def test_a_fence_is_new_for_each_text_or_one_for_the_group() -> None:
    def fences(fence: str) -> set[str]:
        engine = Engine(four)
        judged(judge_of(fence=fence), engine)
        return {content(ask).split("[begin ")[1].split("]")[0] for ask in engine.batches[0]}

    assert len(fences("call")) == 3
    assert len(fences("group")) == 1
    assert fences("call") == fences("call")  # and the same in a run that is repeated
