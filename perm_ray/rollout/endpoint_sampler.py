"""Sample answers from an endpoint, in the place of rollout engines: for evaluation alone.

An endpoint takes chat messages: it renders its own prompt, and cannot go on from `prompt.prefix`.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator, Sequence
from typing import Protocol

from perm_ray.config.engines import EndpointModel
from perm_ray.config.schema import RolloutConfig
from perm_ray.errors import RunError
from perm_ray.files import in_background
from perm_ray.models.endpoint import Endpoint
from perm_ray.models.endpoint_errors import EndpointError
from perm_ray.rollout.actor import completion_seed
from perm_ray.types import Completion, FinishReason, Prompt, Span

UNKNOWN_TOKEN = -1  # an endpoint counts its tokens, and does not say which they are


class Sampler(Protocol):
    """Whoever answers prompts: rollout engines, or an endpoint."""

    def sample(
        self, prompts: Sequence[Prompt], *, num_completions: int, step: int, purpose: str = "train"
    ) -> Iterator[Completion]:
        """Yield `num_completions` of each prompt as they finish."""
        ...


class EndpointSampler:
    """A `Sampler` that asks an endpoint of `models`.

    Args:
        name: Its entry.
        model: The entry itself.
        config: How long answers are, and how they are sampled.
        seed: Of the run; an endpoint may take seeds or not.
    """

    def __init__(self, name: str, model: EndpointModel, config: RolloutConfig, seed: int) -> None:
        self._name, self._model, self._config, self._seed = name, model, config, seed

    def sample(
        self, prompts: Sequence[Prompt], *, num_completions: int, step: int, purpose: str = "train"
    ) -> Iterator[Completion]:
        """Yield `num_completions` of each prompt as they finish.

        Raises:
            ConfigError: The endpoint does not answer at all.
            RunError: A request came to nothing, after the retries of `models.<name>`.
        """
        found: queue.Queue[Completion | None] = queue.Queue()
        seed_key = f"{self._seed}/{purpose}/{step}"

        async def ask(endpoint: Endpoint, prompt: Prompt, index: int) -> None:
            scenario_id = prompt.scenario.scenario_id
            reply = await endpoint.chat(
                prompt.messages,
                max_tokens=self._config.max_completion_tokens,
                temperature=self._config.temperature,
                top_p=self._config.top_p,
                seed=completion_seed(seed_key, scenario_id, index) >> 32,  # most endpoints take 31 bits
            )
            span = Span("assistant", (UNKNOWN_TOKEN,) * reply.tokens.completion)
            reason = FinishReason.LENGTH if reply.cut else FinishReason.STOP
            found.put(Completion(scenario_id, index, reply.text, (span,), reason))

        async def ask_all() -> None:
            endpoint = Endpoint(self._name, self._model, seed=self._seed)
            try:
                await endpoint.check()
                await asyncio.gather(*(ask(endpoint, p, i) for p in prompts for i in range(num_completions)))
            except EndpointError as error:
                raise RunError(
                    f"The endpoint models.{self._name} failed ({error}): run again to go on."
                ) from None
            finally:
                await endpoint.close()

        def run() -> None:
            try:
                asyncio.run(ask_all())
            finally:
                found.put(None)

        work = in_background(run, f"endpoint-{self._name}")
        while (completion := found.get()) is not None:
            yield completion
        work.result()
