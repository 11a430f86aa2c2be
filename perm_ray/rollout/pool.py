"""The driver's handle on all rollout engines: prompts in, completions out as they finish."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from perm_ray.config.schema import EngineConfig, RolloutConfig
from perm_ray.engine.vllm_engine import engine_env
from perm_ray.errors import ActorTimeoutError
from perm_ray.remote import explain, fetch, wait_all
from perm_ray.rollout.actor import RolloutActor, SamplingPlan
from perm_ray.types import Completion, Prompt


class RolloutPool:
    """`config.engine.replicas` rollout engines. A prompt's completions are sampled by one replica, so
    that its prefix cache holds the prompt once."""

    def __init__(self, config: RolloutConfig, model_dir: Path, seed: int, deterministic: bool) -> None:
        engine = config.engine
        actor = ray.remote(RolloutActor).options(
            num_cpus=engine.num_cpus,
            num_gpus=engine.num_gpus,
            max_concurrency=64,
            runtime_env={"env_vars": engine_env(engine)},
        )
        self._config = config
        self._seed = seed
        self.actors: list[Any] = [
            actor.remote(model_dir, engine, seed, deterministic) for _ in range(engine.replicas)
        ]

    def starting(self) -> dict[str, ray.ObjectRef]:
        """A call for each engine that returns once it is up."""
        return {_role(i): actor.ready.remote() for i, actor in enumerate(self.actors)}

    def sample(
        self, prompts: Sequence[Prompt], *, num_completions: int, step: int, purpose: str = "train"
    ) -> Iterator[Completion]:
        """Yield `num_completions` of each prompt as they finish.

        The same seed, step and purpose give each completion the same random numbers, whatever the
        number of replicas. Raises `ActorFailedError` or, after `rollout.timeout_s`, `ActorTimeoutError`.
        """
        plan = SamplingPlan(
            num_completions=num_completions,
            max_tokens=self._config.max_completion_tokens,
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            seed_key=f"{self._seed}/{purpose}/{step}",
        )
        streams = {}
        for i, actor in enumerate(self.actors):
            share = prompts[i :: len(self.actors)]
            if share:
                streams[actor.sample.options(num_returns="streaming").remote(share, plan)] = _role(i)
        yield from self._merged(streams, f"sampling step {step}")

    def _merged(self, streams: dict[Any, str], doing: str) -> Iterator[Completion]:
        deadline = time.monotonic() + self._config.timeout_s
        while streams:
            left = max(0.0, deadline - time.monotonic())
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=left)
            if not ready:
                late = ", ".join(streams.values())
                raise ActorTimeoutError(
                    f"{late} did not finish within {self._config.timeout_s:.0f} s while {doing}: "
                    "raise rollout.timeout_s or sample less."
                )
            stream: Any = ready[0]
            try:
                ref = next(stream)
            except StopIteration:
                del streams[stream]
            except RayError as error:
                raise explain(error, streams[stream], doing) from error
            else:
                yield fetch(ref, streams[stream], doing)

    @property
    def engine_config(self) -> EngineConfig:
        return self._config.engine

    def weight_versions(self, timeout_s: float) -> list[int]:
        """The policy version that each engine holds."""
        calls = {_role(i): actor.weight_version.remote() for i, actor in enumerate(self.actors)}
        return wait_all(calls, timeout_s=timeout_s, doing="reporting its weights' version")


def _role(index: int) -> str:
    return f"rollout engine {index}"
