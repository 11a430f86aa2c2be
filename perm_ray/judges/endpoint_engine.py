"""A judge engine that lives elsewhere: the twin of `engine.py` for an OpenAI-compatible endpoint.

Runs remotely. It can neither begin the judge's turn nor see the probabilities of all numbers, so it is
asked in words (see `modes.py`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace

from perm_ray.config.schema import JudgeEndpointConfig
from perm_ray.engine.endpoint import Endpoint, EndpointReply
from perm_ray.engine.endpoint_errors import EndpointError
from perm_ray.perspectives.asking import (
    Answer,
    Ask,
    EngineReply,
    Refused,
    TextAnswer,
    TextAsk,
    ValueAnswer,
    ValueAsk,
)

TOP_LOGPROBS = 20  # the most that endpoints give
VALUE_TOKENS = 4


class JudgeEndpoint:
    """Made an actor by `pool.py`; one client of one endpoint."""

    def __init__(self, name: str, config: JudgeEndpointConfig, seed: int) -> None:
        self._name = name
        self._config = config
        self._seed = seed
        self._made: Endpoint | None = None

    async def ready(self) -> None:
        """Returns once the endpoint has answered; raises `ConfigError` when it does not."""
        await self._endpoint.check()

    async def answer(self, asks: Sequence[Ask]) -> EngineReply:
        """Answer `asks`, in order, as many at a time as the endpoint bears."""
        started = time.time()
        answers = await asyncio.gather(*(self._answer(ask) for ask in asks))
        return EngineReply(answers, started, time.time())

    async def forget(self) -> None:
        """Nothing to forget: what the endpoint caches is its own business."""

    @property
    def _endpoint(self) -> Endpoint:
        if self._made is None:  # within the actor's event loop
            self._made = Endpoint(self._name, self._config, seed=self._seed)
        return self._made

    async def _answer(self, ask: Ask) -> Answer:
        try:  # fault boundary: a request that came to nothing is an ask without an answer
            match ask:
                case ValueAsk():
                    return await self._values(ask)
                case TextAsk():
                    reply = await self._endpoint.chat(
                        ask.messages,
                        max_tokens=ask.max_tokens,
                        temperature=ask.temperature,
                        seed=ask.seed,
                        regex=ask.regex,
                        json_schema=ask.json_schema,
                    )
                    return TextAnswer(reply.text, reply.cut, reply.tokens)
        except EndpointError as error:
            return Refused(str(error))

    async def _values(self, ask: ValueAsk) -> Answer:
        """The probabilities of numbers that the endpoint writes as one token and finds likely."""
        *before, last = ask.messages
        request = f"Go on from here with one whole number and nothing else:\n{ask.prefix}"
        reply = await self._endpoint.chat(
            [*before, replace(last, content=f"{last.content}\n\n{request}")],
            max_tokens=VALUE_TOKENS,
            top_logprobs=TOP_LOGPROBS,
        )
        return value_answer(ask, reply)


def value_answer(ask: ValueAsk, reply: EndpointReply) -> Answer:
    """Read the first token's probabilities; an unlisted number has none."""
    if not reply.top_logprobs:
        return Refused(
            "refused: the endpoint gives no log-probabilities: set logprobs to false", reply.tokens
        )
    written = reply.text.strip()
    found = dict.fromkeys(ask.values, -math.inf)
    singles: set[str] = set()
    for token, logprob in reply.top_logprobs[0].items():
        number = token.strip()
        if number.isdecimal() and int(number) in found:
            singles.add(number)
            found[int(number)] = max(found[int(number)], logprob)
    if written.isdecimal() and written not in singles:
        reason = (
            f"refused: the endpoint writes {written} in several tokens: use scoring.mode reasoned or sampled"
        )
        return Refused(reason, reply.tokens)
    return ValueAnswer(found, reply.tokens)
