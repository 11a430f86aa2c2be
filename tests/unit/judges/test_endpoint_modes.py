"""Every scoring mode through a real endpoint on loopback: from the question to the judgment."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from perm_ray.config.engines import EndpointModel
from perm_ray.config.judges import JudgePoolConfig, ScoringConfig
from perm_ray.judges.asking import EngineReply, Query
from perm_ray.judges.endpoint_engine import JudgeEndpoint
from perm_ray.judges.judge import JudgeTask, PromptedJudge
from perm_ray.judges.perspective import load_perspective
from perm_ray.types import Judgment, Status
from tests.support.fake_endpoint import Behaviour, FakeEndpoint, Request, always
from tests.support.fakes import fake_prompt

POINTS = {"content": 12, "structure": 8, "efficiency": 0, "objectivity": 20, "accuracy": 15}


def in_form(request: Request) -> str:
    """An answer in the form that the request asks for: JSON by its schema, or the lines it shows."""
    if "response_format" in request:
        asked = request["response_format"]["json_schema"]["schema"]["properties"]
        return json.dumps(
            {name: POINTS.get(name, 4) if name != "reason" else "warm, 2 things" for name in asked}
        )
    text = request["messages"][-1]["content"].rpartition("write nothing else:\n")[2]
    text = text.replace("<one or two sentences>", "It names 2 of 3 things.")
    return re.sub(r"(\w+): <[^>]+>", lambda m: f"{m[1]}: {POINTS.get(m[1].lower(), 4)}", text)


def judge(server: FakeEndpoint, perspective: str, mode: Any, **values: Any) -> Judgment:
    config = EndpointModel(base_url=server.base_url, model="fake", max_retries=0, **values)
    pool = JudgePoolConfig(model="far", scoring=ScoringConfig(mode=mode, num_samples=3))
    one = PromptedJudge(load_perspective(perspective), pool, "fake", seed=1, supports_prefill=False)
    engine = JudgeEndpoint("far", config, seed=1)

    async def asker(asks: Sequence[Query], /) -> tuple[EngineReply, int]:
        return await engine.answer(asks), 1

    task = JudgeTask(fake_prompt("a").scenario, ("a", 0), "How lovely, and how well you tell it.")
    return asyncio.run(one.judge([task], asker)).judgments[0]


@pytest.mark.parametrize("structured", ["none", "json_schema", "regex"])
@pytest.mark.parametrize("mode", ["reasoned", "sampled"])
@pytest.mark.parametrize(("perspective", "score"), [("reception", 4.0), ("bystander", 55.0)])
def test_answers_in_words_in_every_mode(perspective: str, score: float, mode: str, structured: str) -> None:
    with FakeEndpoint(in_form) as server:
        judgment = judge(server, perspective, mode, structured=structured)
    assert (judgment.status, judgment.score) == (Status.OK, score), judgment.reason
    assert judgment.criteria == (POINTS if perspective == "bystander" else {})
    assert len(server.requests) == (3 if mode == "sampled" else 1)
    seeds = [request["seed"] for request in server.requests]
    assert len(set(seeds)) == len(seeds)  # samples differ
    assert judgment.tokens.prompt > judgment.tokens.cached > 0
    assert judgment.tokens.completion > 0


def test_an_expected_score_is_the_mean_under_the_endpoints_probabilities() -> None:
    def likely(request: Request) -> Mapping[str, float]:
        name = request["messages"][-1]["content"].rpartition("\n")[2].partition(":")[0].lower()
        points = POINTS.get(name)
        if points is None:
            return {" 4": math.log(0.5), "5": math.log(0.25), "Four": math.log(0.2)}
        return {str(points): math.log(0.9), "10": math.log(0.05), "maybe": math.log(0.05)}

    with FakeEndpoint(lambda request: next(iter(likely(request))), logprobs=likely) as server:
        warm = judge(server, "reception", "expected", logprobs=True)
        sound = judge(server, "bystander", "expected", logprobs=True)
    assert warm.score == pytest.approx((4 * 0.5 + 5 * 0.25) / 0.75)
    assert (warm.mass, warm.sampled) == (pytest.approx(0.75), 4.0)
    assert sound.status == Status.OK, sound.reason
    for name, points in POINTS.items():
        assert sound.criteria[name] == pytest.approx((points * 0.9 + 10 * 0.05) / 0.95)
    assert sound.score == pytest.approx(math.fsum(sound.criteria[name] for name in POINTS))


def test_an_endpoint_without_probabilities_fails_with_advice() -> None:
    with FakeEndpoint(lambda _: "4") as server:
        judgment = judge(server, "reception", "expected", logprobs=True)
    assert (judgment.status, judgment.score) == (Status.FAILED, None)
    assert "set logprobs to false" in judgment.reason


@pytest.mark.parametrize(
    ("behaviour", "status", "reason"),
    [
        (Behaviour.HTTP_500, Status.FAILED, "server_error: far"),
        (Behaviour.TRUNCATE, Status.FAILED, "connection: far"),
        (Behaviour.NO_CHOICES, Status.FAILED, "malformed: far"),
        (Behaviour.OFF_THE_SCALE, Status.UNPARSEABLE, "a whole number from 0 to 20|no number"),
        (Behaviour.NONSENSE, Status.UNPARSEABLE, "no number"),
        (Behaviour.CUT_OFF, Status.UNPARSEABLE, "cut off before its end"),
    ],
)
@pytest.mark.parametrize("mode", ["reasoned", "sampled"])
def test_a_fault_is_a_status_and_a_reason_in_every_mode(
    mode: str, behaviour: Behaviour, status: Status, reason: str
) -> None:
    with FakeEndpoint(in_form, behaviour=always(behaviour)) as server:
        judgment = judge(server, "bystander", mode)
    assert (judgment.status, judgment.score, judgment.criteria) == (status, None, {})
    assert re.search(reason, judgment.reason)
