"""The endpoint's client against answers that no server should give; and what it must never say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perm_ray.config.engines import EndpointModel
from perm_ray.errors import ConfigError
from perm_ray.models.endpoint import Endpoint, EndpointReply
from perm_ray.models.endpoint_errors import Cause, EndpointError
from perm_ray.types import Message, TokenUsage
from tests.support.fake_endpoint import Behaviour, FakeEndpoint, always

CHAT = (Message("user", "Was it warm?"),)
USAGE = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Score: 4"}}
BODY = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [CHOICE],
    "usage": USAGE,
}
Handler = Callable[[httpx2.Request], httpx2.Response]


def answering(body: object, status: int = 200) -> Handler:
    return lambda _: httpx2.Response(status, json=body)


def endpoint_of(handler: Handler, **values: Any) -> Endpoint:
    defaults = {"base_url": "http://far.example/v1", "model": "m", "max_retries": 0, "timeout_s": 20.0}
    config = EndpointModel(**(defaults | values))
    return Endpoint("far", config, transport=httpx2.MockTransport(handler))


def ask(handler: Handler, **values: Any) -> EndpointReply:
    async def run() -> EndpointReply:
        return await endpoint_of(handler, **values).chat(CHAT, max_tokens=9, top_logprobs=5)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        5,
        "Score: 4",
        {},
        BODY | {"choices": None},
        BODY | {"choices": []},
        BODY | {"choices": [None]},
        BODY | {"choices": [{"index": 0}]},
        BODY | {"choices": [CHOICE | {"message": {"content": None}}]},
        BODY | {"choices": [CHOICE | {"message": {"content": 4}}]},
        BODY | {"choices": [CHOICE | {"logprobs": {"content": [{"top_logprobs": None}]}}]},
        BODY | {"choices": [CHOICE | {"logprobs": {"content": [{"top_logprobs": [{"token": "4"}]}]}}]},
    ],
)
def test_json_that_is_no_completion_is_malformed(body: object) -> None:
    with pytest.raises(EndpointError) as caught:
        ask(answering(body))
    assert caught.value.cause == Cause.MALFORMED


@pytest.mark.parametrize("text", ["", "<html>", "{", "[" * 100_000, '{"choices": ' * 5_000, "\udcff"])
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_a_body_that_is_no_json_is_malformed(text: str, kind: str) -> None:
    content = text.encode("utf-8", "surrogateescape")
    with pytest.raises(EndpointError) as caught:
        ask(lambda _: httpx2.Response(200, content=content, headers={"content-type": kind}))
    assert caught.value.cause == Cause.MALFORMED


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "choices",
    "usage",
    "choices.0",
    "choices.0.message",
    "choices.0.logprobs",
    "choices.0.finish_reason",
)


@given(st.sampled_from(FIELDS), json_values)
def test_any_json_in_any_field_is_an_answer_or_an_endpoint_error(field: str, value: object) -> None:
    body = json.loads(json.dumps(BODY))
    *path, last = field.split(".")
    at: Any = body
    for name in path:
        at = at[int(name) if name.isdigit() else name]
    at[int(last) if last.isdigit() else last] = value
    content = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    reply = EndpointReply("", False, TokenUsage(), 1)
    with contextlib.suppress(EndpointError):
        reply = ask(lambda _: httpx2.Response(200, content=content, headers=headers))
    assert isinstance(reply.text, str)
    assert min(reply.tokens.prompt, reply.tokens.cached, reply.tokens.completion) >= 0


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": None}, {"prompt_tokens": -3}, {"prompt_tokens": "9"}]
)
def test_an_answer_without_a_count_of_tokens_is_an_answer(usage: object) -> None:
    assert ask(answering(BODY | {"usage": usage}), tpm=10_000).tokens == TokenUsage()


@pytest.mark.parametrize(
    ("status", "cause", "words"),
    [
        (302, Cause.REFUSED, "answered 302"),
        (400, Cause.REFUSED, "answered 400"),
        (403, Cause.UNAUTHORIZED, "does not accept"),
        (404, Cause.REFUSED, "no chat model 'm'.*mend model or base_url"),
        (408, Cause.TIMEOUT, "no answer"),
        (429, Cause.RATE_LIMITED, "no more requests"),
        (503, Cause.SERVER_ERROR, "answered 503"),
    ],
)
def test_every_status_has_its_cause(status: int, cause: Cause, words: str) -> None:
    with pytest.raises(EndpointError, match=words) as caught:
        ask(answering({"error": {"message": "no"}}, status))
    assert caught.value.cause == cause


# ---- secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500])
def test_a_key_is_in_no_message_and_no_log(
    status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAR_KEY", "sk-very-secret")

    def echo(request: httpx2.Request) -> httpx2.Response:
        said = f"you sent {request.headers['authorization']} " + "x" * 270 + request.headers["authorization"]
        return httpx2.Response(status, json={"error": {"message": said}})

    with caplog.at_level(logging.DEBUG), pytest.raises(EndpointError) as caught:
        ask(echo, api_key_env="FAR_KEY")
    for secret in ("sk-very-secret", "sk-very"):
        assert secret not in str(caught.value)
        assert secret not in repr(caught.value)
    assert "sk-very-secret" not in caplog.text


def test_a_key_from_a_file_loses_its_line_end_and_one_that_cannot_be_sent_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeEndpoint(key="sk-123") as server:
        monkeypatch.setenv("FAR_KEY", "sk-123\n")
        config = EndpointModel(base_url=server.base_url, model="fake", api_key_env="FAR_KEY")

        async def run() -> str:
            return (await Endpoint("far", config).chat(CHAT, max_tokens=9)).text

        assert asyncio.run(run()) == "Score: 4"
    for key in ("sk-1\n23", "sk-schlüssel"):
        monkeypatch.setenv("FAR_KEY", key)
        with pytest.raises(ConfigError, match="FAR_KEY with characters that no key has") as caught:
            Endpoint("far", config)
        assert "sk-" not in str(caught.value)


# ---- time --------------------------------------------------------------------------------------


def test_all_tries_together_keep_to_the_bound() -> None:
    """A server that says 'in a moment' and then hangs: the last try has only what is left of the time."""

    async def run(server: FakeEndpoint) -> float:
        values: dict[str, Any] = {"timeout_s": 1.0, "max_retries": 1, "queue_timeout_s": 0.01}
        endpoint = Endpoint("far", EndpointModel(base_url=server.base_url, model="fake", **values))
        begun = time.monotonic()
        with pytest.raises(EndpointError, match="no answer"):
            await endpoint.chat(CHAT, max_tokens=9)
        return time.monotonic() - begun

    def first_busy(number: int, _request: object) -> Behaviour:
        return Behaviour.HTTP_429 if number == 0 else Behaviour.HANG

    with FakeEndpoint(behaviour=first_busy, retry_after="1.9") as server:
        assert asyncio.run(run(server)) < 2.7  # 2.0, and room for a busy machine


def test_waiting_for_a_place_has_a_bound() -> None:
    async def run(server: FakeEndpoint) -> list[Cause]:
        values: dict[str, Any] = {
            "timeout_s": 0.5,
            "queue_timeout_s": 0.2,
            "max_retries": 0,
            "max_concurrency": 1,
        }
        endpoint = Endpoint("far", EndpointModel(base_url=server.base_url, model="fake", **values))
        calls = [endpoint.chat(CHAT, max_tokens=9) for _ in range(4)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        causes = [error.cause for error in errors if isinstance(error, EndpointError)]
        assert sum(endpoint.stats.failures.values()) == len(causes)
        return causes

    with FakeEndpoint(behaviour=always(Behaviour.HANG)) as server:
        causes = asyncio.run(run(server))
        assert len(server.requests) <= 2  # the second has the place for what is left of its time
    assert causes == [Cause.TIMEOUT] * 4


def test_a_cancelled_call_leaves_nothing_behind() -> None:
    async def run(server: FakeEndpoint) -> str:
        values = {"max_concurrency": 2, "tpm": 100_000, "timeout_s": 20.0}
        endpoint = Endpoint("far", EndpointModel(base_url=server.base_url, model="fake", **values))
        calls = [asyncio.create_task(endpoint.chat(CHAT, max_tokens=9)) for _ in range(6)]
        while len(server.requests) < 2:
            await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)
        assert endpoint.stats.failures == {}
        server.behaviour = always(Behaviour.OK)
        both = await asyncio.gather(*(endpoint.chat(CHAT, max_tokens=9) for _ in range(2)))
        await endpoint.close()
        return both[0].text

    with FakeEndpoint(behaviour=always(Behaviour.HANG)) as server:
        assert asyncio.run(run(server)) == "Score: 4"


def test_no_more_are_under_way_than_configured() -> None:
    async def run(server: FakeEndpoint) -> None:
        config = EndpointModel(base_url=server.base_url, model="fake", max_concurrency=3)
        endpoint = Endpoint("far", config)
        await asyncio.gather(*(endpoint.chat(CHAT, max_tokens=9) for _ in range(12)))

    with FakeEndpoint(behaviour=always(Behaviour.SLOW), slow_s=0.05) as server:
        asyncio.run(run(server))
    assert server.served == {Behaviour.SLOW: 12}
    assert server.most_at_once == 3


# ---- the check at the start ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "chat", "words"),
    [
        (200, 200, None),
        (404, 200, None),  # no list of models: asked for a token instead
        (404, 404, "no chat model 'm' at this address"),
        (404, 401, "does not accept"),
        (401, 200, "does not accept"),
        (500, 200, "answered 500"),
        (404, 429, None),  # it is there, and busy
        (429, 200, None),
        (404, 500, "answered 500"),
    ],
)
def test_a_check_finds_a_wrong_address_key_or_model(models: int, chat: int, words: str | None) -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        asked_models = request.url.path.endswith("/models")
        status = models if asked_models else chat
        listed = {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "x"}]}
        good = listed if asked_models else BODY
        return httpx2.Response(status, json=good if status == 200 else {"error": {"message": "no"}})

    async def run() -> None:
        await endpoint_of(handler).check()

    if words is None:
        asyncio.run(run())
    else:
        with pytest.raises(ConfigError, match=f"models.far must be .*{words}"):
            asyncio.run(run())


def test_a_model_that_the_endpoint_does_not_list_is_tried() -> None:
    seen: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.url.path)
        if request.url.path.endswith("/models"):
            return httpx2.Response(200, json={"object": "list", "data": []})
        return httpx2.Response(404, json={"error": {"message": "no such model"}})

    async def run() -> None:
        await endpoint_of(handler).check()

    with pytest.raises(ConfigError, match="mend its base_url, model or api_key_env"):
        asyncio.run(run())
    assert seen == ["/v1/models", "/v1/chat/completions"]
