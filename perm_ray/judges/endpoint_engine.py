"""A judge engine that lives elsewhere: the twin of `engine.py` for an OpenAI-compatible endpoint.

Runs remotely. It can neither begin the judge's turn nor see the probabilities of all numbers, so it is
asked in words (see `modes.py`).
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace

from perm_ray.config.engines import EndpointModel
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
from perm_ray.models.endpoint import Endpoint, EndpointReply
from perm_ray.models.endpoint_errors import EndpointError

TOP_LOGPROBS = 20  # the most that endpoints give
VALUE_TOKENS = 4
MAX_LOGPROB = 1e-3  # of rounding; a probability is at most 1
UNCLEAR_MASS = 0.01  # a digit that may begin a longer number moves no score when it is this unlikely


class JudgeEndpoint:
    """Made an actor by `pool.py`; one client of one endpoint. `key` is the driver's, where it has one: the
    node of the actor need not."""

    def __init__(self, name: str, config: EndpointModel, seed: int, key: str | None = None) -> None:
        if key is not None and config.api_key_env is not None:
            os.environ.setdefault(config.api_key_env, key)
        self._name = name
        self._config = config
        self._seed = seed
        self._made: Endpoint | None = None

    async def ready(self) -> None:
        """Returns once the endpoint has answered; raises `ConfigError` when it does not."""
        await self._endpoint.check()

    async def answer(self, asks: Sequence[Query]) -> EngineReply:
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

    async def _answer(self, ask: Query) -> Answer:
        try:  # fault boundary: a request that came to nothing is an ask without an answer
            match ask:
                case ScoreQuery():
                    return await self._values(ask)
                case TextQuery():
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
            return QueryFailed(str(error))

    async def _values(self, ask: ScoreQuery) -> Answer:
        """Return the probabilities of numbers that the endpoint writes as one token and finds likely."""
        *before, last = ask.messages
        request = f"Go on from here with one whole number and nothing else:\n{ask.prefix}"
        reply = await self._endpoint.chat(
            [*before, replace(last, content=f"{last.content}\n\n{request}")],
            max_tokens=VALUE_TOKENS,
            top_logprobs=TOP_LOGPROBS,
        )
        return value_answer(ask, reply)


def value_answer(ask: ScoreQuery, reply: EndpointReply) -> Answer:
    """Read the first token's probabilities; a number that is not listed has none.

    A tokeniser that writes 12 as 1 and 2 would give 1 the probability of all the teens, so that is refused:
    when such a number was written, and when a digit that begins longer ones is likely and none of them is
    listed as one token.
    """
    if not reply.top_logprobs:
        return QueryFailed(
            "refused: the endpoint gives no log-probabilities: set logprobs to false", reply.tokens
        )
    found = dict.fromkeys(ask.values, -math.inf)
    if any(not logprob <= MAX_LOGPROB for logprob in reply.top_logprobs[0].values()):
        return QueryFailed("malformed: a log-probability must be at most 0", reply.tokens)
    for token, logprob in reply.top_logprobs[0].items():
        number = token.strip()
        if number.isdecimal() and int(number) in found:
            likely = math.exp(found[int(number)]) + math.exp(logprob)  # "4" and " 4" both say it
            found[int(number)] = math.log(likely) if likely > 0 else -math.inf
    listed = {str(value) for value, logprob in found.items() if logprob > -math.inf}
    written = reply.text.strip()
    split = written.isdecimal() and int(written) in found and str(int(written)) not in listed
    longer = {str(value) for value in ask.values if value > 9}
    if not split and not listed & longer:
        begins = sum(math.exp(found[int(n)]) for n in listed if any(each.startswith(n) for each in longer))
        split = begins > UNCLEAR_MASS
    if split:
        reason = (
            "refused: the endpoint writes numbers in several tokens: use scoring.mode reasoned or sampled"
        )
        return QueryFailed(reason, reply.tokens)
    return ScoreAnswer(found, reply.tokens)
