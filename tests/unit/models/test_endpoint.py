"""The endpoint's client against a real server on loopback that misbehaves in every way it can."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from perm_ray.config.engines import EndpointModel
from perm_ray.config.judges import JudgePoolConfig, JudgesConfig, ScoringConfig
from perm_ray.config.schema import Config
from perm_ray.errors import ConfigError
from perm_ray.judges.asking import EngineReply, Query, QueryFailed, ScoreAnswer, ScoreQuery, TextQuery
from perm_ray.judges.endpoint_engine import JudgeEndpoint, value_answer
from perm_ray.judges.judge import JudgeTask, PromptedJudge
from perm_ray.judges.perspective import load_perspective
from perm_ray.models.endpoint import Endpoint, EndpointReply
from perm_ray.models.endpoint_errors import Cause, EndpointError, retry_after_s
from perm_ray.types import Message, Status, TokenUsage
from tests.support.fake_endpoint import FAULTS, Behaviour, FakeEndpoint, always, faults, scripted
from tests.support.fakes import fake_prompt

CHAT = (Message("user", "How was it, and was it warm?"),)


class FastClock:
    """Does not wait; remembers for how long it should have."""

    def __init__(self) -> None:
        self.time = 0.0
        self.pauses: list[float] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.time += seconds


def config_of(server: FakeEndpoint, **values: Any) -> EndpointModel:
    config = EndpointModel(
        base_url=server.base_url, model="fake", timeout_s=20.0, max_retries=2, queue_timeout_s=60
    )
    return replace(config, **values)


def ask(server: FakeEndpoint, clock: FastClock | None = None, **values: Any) -> EndpointReply:
    async def run() -> EndpointReply:
        endpoint = Endpoint("judge", config_of(server, **values), clock=clock or FastClock())
        return await endpoint.chat(CHAT, max_tokens=9, temperature=0.5, seed=3, top_logprobs=5)

    return asyncio.run(run())


def test_a_good_answer_with_what_it_cost() -> None:
    with FakeEndpoint(lambda _: "Score: 4", logprobs=lambda _: {"4": -0.1, "5": -2.5}) as server:
        reply = ask(server)
    assert (reply.text, reply.cut, reply.tries) == ("Score: 4", False, 1)
    assert reply.tokens == TokenUsage(prompt=7, cached=3, completion=2)
    assert reply.top_logprobs == ({"4": -0.1, "5": -2.5},)
    (request,) = server.requests
    assert (request["model"], request["max_tokens"], request["temperature"], request["seed"]) == (
        "fake",
        9,
        0.5,
        3,
    )


@pytest.mark.parametrize(
    ("behaviour", "cause"),
    [
        (Behaviour.HTTP_500, Cause.SERVER_ERROR),
        (Behaviour.HTTP_429, Cause.RATE_LIMITED),
        (Behaviour.HANG, Cause.TIMEOUT),
        (Behaviour.TRUNCATE, Cause.CONNECTION),
        (Behaviour.INVALID_JSON, Cause.MALFORMED),
        (Behaviour.NO_CHOICES, Cause.MALFORMED),
    ],
)
def test_every_fault_has_its_cause_and_is_tried_as_often_as_configured(
    behaviour: Behaviour, cause: Cause
) -> None:
    with FakeEndpoint(behaviour=always(behaviour)) as server:
        with pytest.raises(EndpointError) as caught:
            ask(server, max_retries=1, timeout_s=0.5 if behaviour == Behaviour.HANG else 20.0)
        assert caught.value.cause == cause, caught.value
        assert server.base_url in str(caught.value)
        assert len(server.requests) == 2


def test_what_goes_wrong_once_is_made_good() -> None:
    clock = FastClock()
    with FakeEndpoint(behaviour=scripted([Behaviour.HTTP_500, Behaviour.TRUNCATE])) as server:
        assert ask(server, clock).tries == 3
    first, second = clock.pauses
    assert 0.5 <= first <= 1.0 <= second <= 2.0


def test_the_servers_own_pause_is_kept_and_never_longer_than_the_call_may_take() -> None:
    clock = FastClock()
    with FakeEndpoint(behaviour=scripted([Behaviour.HTTP_429]), retry_after="1") as server:
        ask(server, clock)
    assert clock.pauses == [1.0]
    with FakeEndpoint(behaviour=scripted([Behaviour.HTTP_429]), retry_after="86400") as server:
        with pytest.raises(EndpointError, match="allows no more requests"):
            ask(server)
        assert len(server.requests) == 1


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s("7", 0.0) == 7.0
    assert retry_after_s("Thu, 01 Jan 1970 00:01:00 GMT", 15.0) == 45.0
    assert retry_after_s("Thu, 01 Jan 1970 00:01:00 GMT", 99.0) == 0.0
    assert [retry_after_s(text, 0.0) for text in (None, "soon", "nan", "inf")] == [None] * 4


def test_a_wrong_key_says_which_variable_to_mend_and_never_shows_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with FakeEndpoint(key="another") as server:
        with pytest.raises(EndpointError) as caught:
            ask(server, api_key_env="MY_KEY")
        assert "the key in MY_KEY" in str(caught.value)
        assert "sk-very-secret" not in str(caught.value)
        assert caught.value.cause == Cause.UNAUTHORIZED
        with pytest.raises(EndpointError, match="set api_key_env"):
            ask(server)


def test_a_key_that_is_not_set_is_missed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with FakeEndpoint() as server, pytest.raises(ConfigError, match=r"MY_KEY, which is not set"):
        ask(server, api_key_env="MY_KEY")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "SOCKS proxy"),
        ("HTTP_PROXY", "gopher://127.0.0.1:9", "Unknown scheme"),
        ("SSL_CERT_FILE", "/nowhere/certificates.pem", "No such file"),
    ],
)
def test_a_proxy_or_certificates_that_cannot_be_used_are_told_and_do_not_concern_this_machine(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ConfigError, match=f"models.far, found .*{words}.* ALL_PROXY"):
        Endpoint("far", EndpointModel(base_url="http://far.example:1/v1", model="fake"))
    with FakeEndpoint() as server:
        ask(server)


def test_an_endpoint_behind_a_proxy_that_is_not_there_blames_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    config = EndpointModel(base_url="http://far.example:1/v1", model="fake", max_retries=0)

    async def run() -> None:
        await Endpoint("far", config).chat(CHAT, max_tokens=1)

    with pytest.raises(EndpointError, match=r"through the proxy http://<redacted>@127\.0\.0\.1:9"):
        asyncio.run(run())


def test_requests_keep_to_the_rate() -> None:
    clock = FastClock()

    async def run(server: FakeEndpoint) -> None:
        endpoint = Endpoint("judge", config_of(server, rpm=60, timeout_s=60.0), clock=clock)
        for _ in range(16):
            await endpoint.chat(CHAT, max_tokens=9)

    with FakeEndpoint() as server:
        asyncio.run(run(server))
    assert clock.time == pytest.approx(10.0)  # six at once, then one a second


def test_a_rate_that_would_take_too_long_is_a_timeout_and_not_a_wait() -> None:
    with FakeEndpoint() as server, pytest.raises(EndpointError, match="allows no request for"):
        ask(server, tpm=1, queue_timeout_s=1)


def test_a_check_finds_what_is_not_there() -> None:
    with FakeEndpoint() as server:
        config = config_of(server)
        asyncio.run(Endpoint("judge", config).check())
    with pytest.raises(ConfigError, match=r"models\.judge must be an endpoint that answers"):
        asyncio.run(Endpoint("judge", config).check())


# ---- the judge that asks it ----------------------------------------------------------------------


def test_expected_scores_from_an_endpoints_logprobs() -> None:
    reply = EndpointReply("4", False, TokenUsage(), 1, ({" 4": -0.5, "4": -1.5, "5": -2.0, "a": -3.0},))
    answer = value_answer(ScoreQuery(CHAT, "I give it ", (1, 2, 3, 4, 5)), reply)
    assert isinstance(answer, ScoreAnswer)
    four = math.log(math.exp(-0.5) + math.exp(-1.5))  # two tokens, one number
    expected = {1: -math.inf, 2: -math.inf, 3: -math.inf, 4: four, 5: -2.0}
    assert answer.logprobs == pytest.approx(expected)
    assert isinstance(
        value_answer(ScoreQuery(CHAT, "", (1, 2)), replace(reply, top_logprobs=())), QueryFailed
    )


@pytest.mark.parametrize(
    ("text", "top", "refused"),
    [
        ("12", {"12": -0.1, "11": -3.0}, False),
        ("12", {"1": -0.1}, True),  # written as 1 and 2
        ("8", {"8": -0.3, "1": -1.5}, True),  # 1, or how 10 to 19 begin?
        ("8", {"8": -0.3, "1": -1.5, "10": -3.0}, False),  # 10 is one token: 1 is 1
        ("8", {"8": -0.1, "9": -3.0, "1": -7.0}, False),  # too unlikely to matter
        ("77", {"77": -0.1, "8": -3.0}, False),  # off the scale, which is for the mode to see
        ("fine", {"fine": -0.1}, False),
    ],
)
def test_numbers_of_two_digits_are_read_only_when_they_are_one_token(
    text: str, top: dict[str, float], refused: bool
) -> None:
    reply = EndpointReply(text, False, TokenUsage(), 1, (top,))
    answer = value_answer(ScoreQuery(CHAT, "Content: ", tuple(range(21))), reply)
    assert isinstance(answer, QueryFailed if refused else ScoreAnswer)
    if isinstance(answer, ScoreAnswer):
        seen = {str(value) for value, logprob in answer.logprobs.items() if logprob > -math.inf}
        assert seen == {token for token in top if token.isdecimal() and int(token) <= 20}


def test_the_form_goes_along_as_the_endpoint_understands_it() -> None:
    schema = {"type": "object"}
    wanted = TextQuery(CHAT, "", 9, regex="[1-5]", json_schema=schema)
    for structured, key in (
        ("json_schema", "response_format"),
        ("regex", "structured_outputs"),
        ("none", None),
    ):
        with FakeEndpoint() as server:
            judge = JudgeEndpoint("judge", config_of(server, structured=structured), seed=1)
            asyncio.run(judge.answer([wanted]))
        sent = {"response_format", "structured_outputs"} & server.requests[0].keys()
        assert sent == ({key} if key else set())


def test_nothing_that_goes_wrong_becomes_a_number_and_every_judgment_is_there() -> None:
    """240 judgments, a third of the requests going wrong in every way: all accounted for."""
    judge = PromptedJudge(
        load_perspective("expression"), JudgePoolConfig(retries=1), "fake", 42, supports_prefill=False
    )
    scenario = fake_prompt("a").scenario
    tasks = [JudgeTask(scenario, ("a", index), f"text {index}") for index in range(240)]

    async def run(server: FakeEndpoint) -> Sequence[Any]:
        limits: dict[str, Any] = {"max_retries": 0, "timeout_s": 2.0}
        engine = JudgeEndpoint("judge", config_of(server, **limits), seed=1)

        async def asker(asks: Sequence[Query], /) -> tuple[EngineReply, int]:
            return await engine.answer(asks), 1

        return (await judge.judge(tasks, asker)).judgments

    with FakeEndpoint(lambda _: "Reason: warm.\nScore: 4", behaviour=faults(0.3, seed=5)) as server:
        judgments = asyncio.run(run(server))
        served = server.served
    by_status = {status: [j for j in judgments if j.status == status] for status in Status}
    assert sum(map(len, by_status.values())) == len(tasks)
    assert {j.score for j in by_status[Status.OK]} == {4.0}
    assert {j.score for status in (Status.FAILED, Status.UNPARSEABLE) for j in by_status[status]} == {None}
    causes = Counter(judgment.reason.split(":")[0] for judgment in by_status[Status.FAILED])
    # What was served in time may still be late on a busy machine: then it is a timeout, and no number.
    late = causes.pop("timeout") - served[Behaviour.HANG]
    assert late >= 0
    assert causes == {
        "rate_limited": served[Behaviour.HTTP_429],
        "server_error": served[Behaviour.HTTP_500],
        "connection": served[Behaviour.TRUNCATE],
        "malformed": served[Behaviour.INVALID_JSON] + served[Behaviour.NO_CHOICES],
    }
    wrong = sum(served[each] for each in (Behaviour.NONSENSE, Behaviour.OFF_THE_SCALE, Behaviour.CUT_OFF))
    assert len(by_status[Status.UNPARSEABLE]) <= (wrong + 1) // 2 <= len(by_status[Status.UNPARSEABLE]) + late
    assert served[Behaviour.OK] - late <= len(by_status[Status.OK]) <= served[Behaviour.OK]
    assert set(FAULTS) <= served.keys()


def test_thinking_is_asked_for_or_not_as_the_chat_template_has_it() -> None:
    with FakeEndpoint() as server:
        ask(server)
        ask(server, enable_thinking=False)
        first, second = server.requests
    assert "chat_template_kwargs" not in first
    assert second["chat_template_kwargs"] == {"enable_thinking": False}


# ---- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"base_url": "localhost:8000"}, "base_url must be an address"),
        ({"base_url": "http:///v1"}, "base_url must be an address"),
        ({"base_url": "http://me:sk-abcdef123@host/v1"}, "without a password or key"),
        ({"base_url": "http://host/v1?api_key=sk-abcdef123"}, "without a password or key"),
        ({"model": ""}, "model must be"),
        ({"api_key_env": "sk-abcdef123"}, "api_key_env must be the NAME"),
        ({"rpm": 0}, "rpm must be greater than 0"),
        ({"structured": "xml"}, "structured must be one of"),
    ],
)
def test_an_endpoints_settings_are_checked_and_a_key_is_not_repeated(
    values: dict[str, Any], wrong: str
) -> None:
    base: dict[str, Any] = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    with pytest.raises(ConfigError, match=wrong) as caught:
        EndpointModel(**(base | values))
    assert "sk-abcdef123" not in str(caught.value)


def test_a_pool_cannot_see_probabilities_that_its_endpoint_does_not_give() -> None:
    endpoint = EndpointModel(base_url="http://127.0.0.1:1/v1", model="m")
    pool = JudgePoolConfig(model="far", scoring=ScoringConfig(mode="expected"))
    with pytest.raises(ConfigError, match=r"scoring\.mode must be reasoned or sampled"):
        Config(models={"far": endpoint}, judges=JudgesConfig(pools={"expression": pool}))
    seeing = replace(endpoint, logprobs=True)
    config = Config(models={"far": seeing}, judges=JudgesConfig(pools={"expression": pool}))
    assert (config.replicas_of(pool), config.model_of(pool).model) == (1, "m")


def test_an_endpoint_that_names_the_token_limit_otherwise_loses_no_request() -> None:
    """Eight requests are under way when the first answer says what the name is."""

    async def answer(request: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(0.02)
        if "max_tokens" in json.loads(request.content):
            return httpx2.Response(400, json={"error": {"message": "use max_completion_tokens instead"}})
        message = {"role": "assistant", "content": "Score: 4"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        return httpx2.Response(200, json=body)

    async def run() -> list[EndpointReply]:
        config = EndpointModel(base_url="http://127.0.0.1:1/v1", model="m", max_retries=0)
        endpoint = Endpoint("judge", config, transport=httpx2.MockTransport(answer))
        return await asyncio.gather(*(endpoint.chat(CHAT, max_tokens=4) for _ in range(8)))

    assert [reply.text for reply in asyncio.run(run())] == ["Score: 4"] * 8


def test_the_error_of_a_200_reply_is_in_the_reason() -> None:
    async def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"error": {"message": "no capacity for judges"}})

    async def run() -> None:
        config = EndpointModel(base_url="http://127.0.0.1:1/v1", model="m", max_retries=0)
        endpoint = Endpoint("judge", config, transport=httpx2.MockTransport(answer))
        with pytest.raises(EndpointError, match="no capacity for judges"):
            await endpoint.chat(CHAT, max_tokens=4)

    asyncio.run(run())
