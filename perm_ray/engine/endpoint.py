"""A client of one OpenAI-compatible endpoint, for judges that live elsewhere.

One layer of retries, ours: what may be better the next time is tried again with growing, jittered
pauses (or the server's own `Retry-After`), within a bound for the whole call. What cannot be mended by
asking again raises at once. The key is read from the environment and is in no message.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from perm_ray.config.schema import JudgeEndpointConfig
from perm_ray.engine.limits import AdaptiveConcurrency, CircuitBreaker, Clock, RealClock, TokenBucket
from perm_ray.errors import ConfigError
from perm_ray.types import Message, TokenUsage

if TYPE_CHECKING:
    import httpx2
    from openai.types.chat import ChatCompletion

CHARS_PER_TOKEN = 3  # a cautious guess, until the server says what a request took
CHECK_TIMEOUT_S = 30.0


class Cause(StrEnum):
    """Why a request came to nothing."""

    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    CONNECTION = "connection"
    MALFORMED = "malformed"
    UNAUTHORIZED = "unauthorized"
    REFUSED = "refused"
    CIRCUIT_OPEN = "circuit_open"


_WORTH_ANOTHER_TRY = {
    Cause.TIMEOUT,
    Cause.RATE_LIMITED,
    Cause.SERVER_ERROR,
    Cause.CONNECTION,
    Cause.MALFORMED,
}


class EndpointError(Exception):
    """A request that came to nothing, for good; the message has the endpoint and what it said."""

    def __init__(self, cause: Cause, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(cause, message, retry_after_s)
        self.cause = cause
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.cause}: {self.message}"


@dataclass(frozen=True, slots=True)
class EndpointReply:
    """What the endpoint answered. `top_logprobs` has, for each token where they were asked for, the
    natural-log probabilities of the likeliest tokens by their text; `cut` when it ran out of tokens."""

    text: str
    cut: bool
    tokens: TokenUsage
    tries: int
    top_logprobs: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """What a client has seen: requests by what became of them, its concurrency and its breaker now."""

    ok: int
    failures: Mapping[str, int]
    concurrency: int
    breaker: str


class Endpoint:
    """Made where it is used (in a judge's actor), within a running event loop."""

    def __init__(
        self,
        name: str,
        config: JudgeEndpointConfig,
        *,
        seed: int = 0,
        clock: Clock | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        import httpx2
        from openai import AsyncOpenAI

        self._name = name
        self._config = config
        self._clock = clock or RealClock()
        self._random = random.Random(seed)
        self._key = _key(name, config)
        self._client = AsyncOpenAI(
            base_url=config.base_url,
            api_key=self._key or "none",
            max_retries=0,  # the retries are here
            timeout=config.timeout_s,
            http_client=httpx2.AsyncClient(transport=transport, timeout=config.timeout_s),
        )
        self._requests = TokenBucket(config.rpm, self._clock)
        self._tokens = TokenBucket(config.tpm, self._clock)
        self._concurrency = AdaptiveConcurrency(config.max_concurrency)
        self._breaker = CircuitBreaker(config.breaker_failures, config.breaker_cooldown_s, self._clock)
        self._ok = 0
        self._failures: Counter[str] = Counter()

    @property
    def stats(self) -> EndpointStats:
        return EndpointStats(self._ok, dict(self._failures), self._concurrency.limit, self._breaker.state)

    async def check(self) -> None:
        """Ask for the list of models: a wrong address or key should end a run before it begins.

        Raises `ConfigError`. A server that has no such list, or not this model in it, is let be.
        """
        from openai import APIStatusError

        try:
            await asyncio.wait_for(self._client.models.list(), CHECK_TIMEOUT_S)
        except Exception as error:  # fault boundary: the library's errors and the network's become ours
            found = self._explained(error)
            absent = isinstance(error, APIStatusError) and error.status_code in (404, 405, 501)
            if not absent and found.cause != Cause.MALFORMED:
                raise ConfigError(
                    f"judges.endpoints.{self._name} must be an endpoint that answers, found {found}: "
                    "mend its base_url or api_key_env, or start it."
                ) from None

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        regex: str | None = None,
        json_schema: Mapping[str, object] | None = None,
        top_logprobs: int = 0,
    ) -> EndpointReply:
        """One answer to `messages`. Raises `EndpointError`.

        No longer than the configuration's `longest_call_s`, waiting for its turn included. `regex` and
        `json_schema` are sent if the endpoint's `structured` says that it knows them.
        """
        body = self._body(messages, max_tokens, temperature, seed, regex, json_schema, top_logprobs)
        estimate = max_tokens + sum(len(message.content) for message in messages) / CHARS_PER_TOKEN
        deadline = self._clock.now() + self._config.longest_call_s
        for attempt in range(1, self._config.max_retries + 2):
            try:
                return await self._try(body, estimate, deadline, attempt)
            except EndpointError as error:
                pause = error.retry_after_s
                if pause is None:
                    pause = self._random.uniform(0.5, 1.0) * 2 ** (attempt - 1)
                last = attempt > self._config.max_retries
                left = deadline - self._clock.now()
                if last or error.cause not in _WORTH_ANOTHER_TRY or pause > left:
                    raise
                await self._clock.sleep(pause)
        raise AssertionError("the last try returns or raises")

    async def _try(
        self, body: Mapping[str, Any], estimate: float, deadline: float, attempt: int
    ) -> EndpointReply:
        """One request, in its turn. What becomes of it moves the breaker and the concurrency."""
        async with self._turn(deadline):
            wait = max(self._requests.take(1), self._tokens.take(estimate))
            if wait > deadline - self._clock.now():
                self._requests.give_back(1)
                self._tokens.give_back(estimate)
                raise EndpointError(Cause.TIMEOUT, f"{self._name} allows no request for {wait:.0f} s more")
            if wait > 0:
                await self._clock.sleep(wait)
            if not self._breaker.lets_through():
                raise self._failed(EndpointError(Cause.CIRCUIT_OPEN, f"{self._name} only failed of late"))
            try:
                call = self._client.chat.completions.create(**body)
                reply = _reply(await asyncio.wait_for(call, self._config.timeout_s), attempt)
            except asyncio.CancelledError:
                self._breaker.undecided()
                raise
            except Exception as error:  # fault boundary: the library's errors and the network's become ours
                raise self._failed(self._explained(error)) from None
        self._tokens.give_back(estimate - reply.tokens.prompt - reply.tokens.completion)
        self._concurrency.went_well()
        self._breaker.succeeded()
        self._ok += 1
        return reply

    def _turn(self, deadline: float) -> _Turn:
        return _Turn(self._concurrency, self._clock, deadline, self._name)

    def _failed(self, error: EndpointError) -> EndpointError:
        """Count a failure and draw the consequences."""
        self._failures[error.cause] += 1
        if error.cause in (Cause.TIMEOUT, Cause.SERVER_ERROR, Cause.RATE_LIMITED):
            self._concurrency.trouble()
        if error.cause in (Cause.TIMEOUT, Cause.SERVER_ERROR, Cause.CONNECTION, Cause.MALFORMED):
            self._breaker.failed()
        elif error.cause != Cause.CIRCUIT_OPEN:
            self._breaker.undecided()
        return error

    def _body(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        temperature: float,
        seed: int | None,
        regex: str | None,
        json_schema: Mapping[str, object] | None,
        top_logprobs: int,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        if seed is not None:
            body["seed"] = seed
        if top_logprobs:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        if json_schema and self._config.structured == "json_schema":
            schema = {"name": "judgment", "strict": True, "schema": dict(json_schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if regex and self._config.structured == "regex":
            body["extra_body"] = {"structured_outputs": {"regex": regex}}
        return body

    def _explained(self, error: Exception) -> EndpointError:
        """The library's error as one of ours, in a sentence."""
        import openai

        at = f"{self._name} ({self._config.base_url})"
        match error:
            case openai.APITimeoutError() | TimeoutError():
                return EndpointError(
                    Cause.TIMEOUT, f"{at} gave no answer within {self._config.timeout_s:g} s"
                )
            case openai.RateLimitError(response=response):
                pause = retry_after_s(response.headers.get("retry-after"), time.time())
                return EndpointError(Cause.RATE_LIMITED, f"{at} allows no more requests now", pause)
            case openai.APIStatusError(status_code=status, response=response) if status >= 500:
                pause = retry_after_s(response.headers.get("retry-after"), time.time())
                return EndpointError(Cause.SERVER_ERROR, f"{at} answered {status}", pause)
            case openai.APIStatusError(status_code=401 | 403 as status):
                variable = self._config.api_key_env
                key = f"the key in {variable}" if variable else "a request without a key (set api_key_env)"
                return EndpointError(Cause.UNAUTHORIZED, f"{at} does not accept {key} ({status})")
            case openai.APIStatusError(status_code=404):
                what = (
                    f"has no chat model {self._config.model!r} at this address (404): mend model or base_url"
                )
                return EndpointError(Cause.REFUSED, f"{at} {what}")
            case openai.APIStatusError(status_code=status):
                return EndpointError(Cause.REFUSED, f"{at} answered {status}: {self._said(error)}")
            case openai.APIConnectionError():
                return EndpointError(Cause.CONNECTION, f"{at} cannot be reached: {_root(error)}")
            case _:
                return EndpointError(
                    Cause.MALFORMED, f"{at} answered with no chat completion: {_root(error)}"
                )

    def _said(self, error: Exception) -> str:
        text = " ".join(str(error).split())[:300]
        return text.replace(self._key, "<redacted>") if self._key else text


class _Turn:
    """A slot of the adaptive concurrency, waited for until `deadline` at most."""

    def __init__(self, concurrency: AdaptiveConcurrency, clock: Clock, deadline: float, name: str) -> None:
        self._slot = concurrency.slot()
        self._left = max(0.0, deadline - clock.now())
        self._name = name

    async def __aenter__(self) -> None:
        try:
            await asyncio.wait_for(self._slot.__aenter__(), self._left)
        except TimeoutError:
            message = f"{self._name} had no free place within {self._left:.0f} s"
            raise EndpointError(Cause.TIMEOUT, message) from None

    async def __aexit__(self, *error: Any) -> None:
        await self._slot.__aexit__(*error)


def retry_after_s(header: str | None, now: float) -> float | None:
    """The seconds a `Retry-After` header asks to wait (RFC 9110, section 10.2.3: a number or a date)."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - now
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _key(name: str, config: JudgeEndpointConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env)
    if not key:
        raise ConfigError(
            f"judges.endpoints.{name}.api_key_env must name an environment variable that holds the key, "
            f"found {config.api_key_env}, which is not set where the judge runs: export it."
        )
    return key


def _reply(answer: ChatCompletion, attempt: int) -> EndpointReply:
    """The parts of an answer that we use; anything missing raises, and is `malformed`."""
    choice = answer.choices[0]
    usage = answer.usage
    details = usage.prompt_tokens_details if usage else None
    tokens = TokenUsage(
        prompt=usage.prompt_tokens if usage else 0,
        cached=(details.cached_tokens or 0) if details else 0,
        completion=usage.completion_tokens if usage else 0,
    )
    if not isinstance(choice.message.content, str):
        raise ValueError("its message has no text")
    listed = (choice.logprobs.content or []) if choice.logprobs else []
    top = tuple({each.token: each.logprob for each in token.top_logprobs} for token in listed)
    return EndpointReply(choice.message.content, choice.finish_reason == "length", tokens, attempt, top)


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    what = "invalid JSON" if isinstance(error, json.JSONDecodeError) else " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {what}" if what else type(error).__name__
