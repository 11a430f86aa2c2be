"""A client of one OpenAI-compatible endpoint, for judges that live elsewhere.

One layer of retries, ours: what may be better the next time is tried again with growing, jittered
pauses (or the server's own `Retry-After`), within a bound for the whole call. What cannot be mended by
asking again raises at once. The key is read from the environment and is in no message.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perm_ray.config.engines import EndpointModel
from perm_ray.config.redact import redact_text
from perm_ray.errors import ConfigError
from perm_ray.models.endpoint_errors import (
    WORTH_ANOTHER_TRY,
    Cause,
    EndpointError,
    explained,
    is_plain_loopback,
)
from perm_ray.models.rate_limits import Clock, RealClock, TokenBucket
from perm_ray.types import NO_TOKENS, Message, TokenUsage

if TYPE_CHECKING:
    import httpx2
    from openai.types.chat import ChatCompletion

CHARS_PER_TOKEN = 3  # a cautious guess, until the server says what a request took
CHECK_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class EndpointReply:
    """An endpoint's answer. `top_logprobs` has, for each token where they were asked for, the natural-log
    probabilities of the likeliest tokens by their text; `cut` when the token limit or a filter cut it off."""

    text: str
    cut: bool
    tokens: TokenUsage
    tries: int
    top_logprobs: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """The requests of a client, by what became of them."""

    ok: int
    failures: Mapping[str, int]


class Endpoint:
    """Made where it is used (in a judge's actor), within a running event loop."""

    def __init__(
        self,
        name: str,
        config: EndpointModel,
        *,
        seed: int = 0,
        clock: Clock | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
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
            http_client=_http_client(name, config, transport),
        )
        # The library takes these from the environment and would send them to whatever address.
        self._client.organization = self._client.project = None
        self._requests = TokenBucket(config.rpm, self._clock)
        self._tokens = TokenBucket(config.tpm, self._clock)
        self._places = asyncio.Semaphore(config.max_concurrency)
        self._limit_name = "max_tokens"
        self._ok = 0
        self._failures: Counter[str] = Counter()

    @property
    def stats(self) -> EndpointStats:
        return EndpointStats(self._ok, dict(self._failures))

    async def check(self) -> None:
        """Query for the list of models, and for one token when that does not name ours: a wrong address, key
        or model should end a run before it begins. Raises `ConfigError`, within `CHECK_TIMEOUT_S`."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                if not await self._lists_its_model():  # many do not, and answer all the same
                    await self.chat([Message("user", "Say yes.")], max_tokens=1)
        except TimeoutError:
            message = f"{self._name} gave no answer within {CHECK_TIMEOUT_S:g} s"
            raise self._unfit(EndpointError(Cause.TIMEOUT, message)) from None
        except EndpointError as error:
            if error.cause != Cause.RATE_LIMITED:  # it is there, and busy
                raise self._unfit(error) from None

    async def _lists_its_model(self) -> bool:
        from openai import APIStatusError

        try:
            models = await self._client.models.list()
            return any(model.id == self._config.model for model in models.data)
        except Exception as error:  # fault boundary: as in `_request`
            found = self._explained(error)
            absent = isinstance(error, APIStatusError) and error.status_code in (404, 405, 501)
            if absent or found.cause == Cause.MALFORMED:
                return False
            raise found from None

    def _unfit(self, error: EndpointError) -> ConfigError:
        return ConfigError(
            f"models.{self._name} must be an endpoint that answers, found {error}: mend its "
            "base_url, model or api_key_env, or start it."
        )

    async def close(self) -> None:
        await self._client.close()

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        regex: str | None = None,
        json_schema: Mapping[str, object] | None = None,
        top_logprobs: int = 0,
    ) -> EndpointReply:
        """Return one answer to `messages`. Raises `EndpointError`.

        No longer than the configuration's `longest_call_s`, waiting for its turn included. `regex` and
        `json_schema` are sent if the endpoint's `structured` says that it knows them.
        """
        body = self._body(messages, max_tokens, temperature, seed, regex, json_schema, top_logprobs)
        if top_p < 1:
            body["top_p"] = top_p
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
                if last or error.cause not in WORTH_ANOTHER_TRY or pause > left:
                    raise
                await self._clock.sleep(pause)
        raise AssertionError("the last try returns or raises")

    async def _try(
        self, body: Mapping[str, Any], estimate: float, deadline: float, attempt: int
    ) -> EndpointReply:
        """Send one request, in its turn."""
        try:
            async with asyncio.timeout(self._left(deadline)):
                await self._places.acquire()
        except TimeoutError:
            self._failures[Cause.TIMEOUT] += 1
            raise EndpointError(Cause.TIMEOUT, f"{self._name} had no free place in all its time") from None
        try:
            await self._allowance(estimate, deadline)
            reply = await self._request(body, deadline, attempt)
        except EndpointError as error:
            self._failures[error.cause] += 1
            raise
        finally:
            self._places.release()
        self._ok += 1
        if reply.tokens != NO_TOKENS:  # some endpoints do not say
            self._tokens.give_back(estimate - reply.tokens.prompt - reply.tokens.completion)
        return reply

    async def _create(self, body: Mapping[str, Any]) -> ChatCompletion:
        """Send a request; an endpoint that wants another name for the token limit gets it from then on."""
        from openai import BadRequestError

        sent = self._limit_name  # another request may change it while this one is under way
        try:
            return await self._client.chat.completions.create(**_renamed(body, sent))
        except BadRequestError as error:
            if sent != "max_tokens" or "max_completion_tokens" not in str(error):
                raise
            self._limit_name = "max_completion_tokens"
            return await self._client.chat.completions.create(**_renamed(body, self._limit_name))

    async def _request(self, body: Mapping[str, Any], deadline: float, attempt: int) -> EndpointReply:
        try:
            async with asyncio.timeout(min(self._config.timeout_s, self._left(deadline))):
                return _reply(await self._create(body), attempt)
        except Exception as error:  # fault boundary: the library's errors and the network's become ours
            raise self._explained(error) from None

    async def _allowance(self, estimate: float, deadline: float) -> None:
        """Wait until `rpm` and `tpm` allow a request of about `estimate` tokens."""
        wait = max(self._requests.take(1), self._tokens.take(estimate))
        try:
            if wait > self._left(deadline):
                raise EndpointError(Cause.TIMEOUT, f"{self._name} allows no request for {wait:.0f} s more")
            if wait > 0:
                await self._clock.sleep(wait)
        except (EndpointError, asyncio.CancelledError):  # nothing is sent
            self._requests.give_back(1)
            self._tokens.give_back(estimate)
            raise

    def _left(self, deadline: float) -> float:
        return max(0.0, deadline - self._clock.now())

    def _explained(self, error: Exception) -> EndpointError:
        return explained(error, self._name, self._config, self._key)

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
        extra: dict[str, Any] = {}
        if self._config.enable_thinking is not None:
            extra["chat_template_kwargs"] = {"enable_thinking": self._config.enable_thinking}
        if seed is not None:
            body["seed"] = seed
        if top_logprobs:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        if json_schema and self._config.structured == "json_schema":
            schema = {"name": "judgment", "strict": True, "schema": dict(json_schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if regex and self._config.structured == "regex":
            extra["structured_outputs"] = {"regex": regex}
        if extra:
            body["extra_body"] = extra
        return body


def _renamed(body: Mapping[str, Any], limit_name: str) -> dict[str, Any]:
    return {limit_name if key == "max_tokens" else key: value for key, value in body.items()}


def _http_client(
    name: str, config: EndpointModel, transport: httpx2.AsyncBaseTransport | None
) -> httpx2.AsyncClient:
    """Return a client that heeds the environment's proxy and certificates. Raises `ConfigError`."""
    import httpx2

    try:
        return httpx2.AsyncClient(
            transport=transport,
            timeout=config.timeout_s,
            limits=httpx2.Limits(max_connections=config.max_concurrency),
            trust_env=not is_plain_loopback(config.base_url),  # no proxy stands before this machine itself
        )
    # A proxy that needs a package, a proxy's address that cannot be read, certificates that are not there.
    except (ImportError, httpx2.InvalidURL, ValueError, OSError) as error:
        found = redact_text(" ".join(str(error).split())).rstrip(".")
        raise ConfigError(
            f"The environment's proxy and certificates must be usable to reach models.{name}, found {found}: "
            "mend or unset ALL_PROXY, HTTPS_PROXY, HTTP_PROXY (http:// and https:// proxies are known), "
            "SSL_CERT_FILE and SSL_CERT_DIR."
        ) from None


def _key(name: str, config: EndpointModel) -> str | None:
    """Return the key from the environment; without the line's end that comes with reading it from a file."""
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    expected = f"models.{name}.api_key_env must name an environment variable that holds the key"
    if not key:
        raise ConfigError(
            f"{expected}, found {config.api_key_env}, which is not set where the judge runs: export it."
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{expected}, found {config.api_key_env} with characters that no key has: export it again."
        )
    return key


def _reply(answer: ChatCompletion, attempt: int) -> EndpointReply:
    """Return the parts of an answer that we use; any that is missing raises, and is `malformed`."""
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list) or not choices:
        error = (getattr(answer, "model_extra", None) or {}).get("error")
        text = error.get("message") if isinstance(error, dict) else error
        raise ValueError(f"it has no choices, and says: {text}" if text else "it has no choices")
    text = choices[0].message.content
    if not isinstance(text, str):
        raise ValueError("its message has no text")
    usage = answer.usage
    tokens = TokenUsage(
        prompt=_count(usage, "prompt_tokens"),
        cached=_count(usage and usage.prompt_tokens_details, "cached_tokens"),
        completion=_count(usage, "completion_tokens"),
    )
    listed = (choices[0].logprobs.content or []) if choices[0].logprobs else []
    top = tuple({str(each.token): float(each.logprob) for each in token.top_logprobs} for token in listed)
    return EndpointReply(text, choices[0].finish_reason in ("length", "content_filter"), tokens, attempt, top)


def _count(usage: object, field: str) -> int:
    """Return what an endpoint says that it counted: the library does not check what it is."""
    value = getattr(usage, field, None)
    return value if isinstance(value, int) and value >= 0 else 0
