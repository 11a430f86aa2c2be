"""One perspective's judges, and the engines that judges ask. The driver's handles on both."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from perm_ray.cluster.calls import wait_all
from perm_ray.config.engines import EndpointModel, EngineModel
from perm_ray.config.judges import JudgePoolConfig
from perm_ray.config.schema import Config
from perm_ray.judges.actor import JudgeActor
from perm_ray.judges.asking import Answer, Query
from perm_ray.judges.endpoint_engine import JudgeEndpoint
from perm_ray.judges.engine import JudgeEngine
from perm_ray.judges.judge import JudgeTask, PromptedJudge
from perm_ray.judges.perspective import Perspective
from perm_ray.judges.routing import Router
from perm_ray.models.vllm import engine_env

# A judge and its engine hold nothing that a restart loses: Ray replaces a dead one and re-issues its calls.
_REPLACED_BY_RAY: dict[str, Any] = {"max_restarts": 2, "max_task_retries": 1}


def engine_actor_name(engine: str, replica: int) -> str:
    """Return the name by which judges find their engine, also after one of the two was replaced."""
    return f"judge_engine/{engine}/{replica}"


class JudgeEnginePool:
    """The judge engines and endpoints, by their names. They live as long as this object does.

    Args:
        models: Those that are asked.
        model_dirs: The folder of each engine's model.
        seed: Of sampling.
        deterministic: Whether answers must not depend on what else is being answered.
        scheduling: A Ray scheduling strategy for each replica of each engine.
    """

    def __init__(
        self,
        models: Mapping[str, EngineModel | EndpointModel],
        model_dirs: Mapping[str, Path],
        seed: int,
        deterministic: bool,
        scheduling: Mapping[str, Sequence[Any]],
    ) -> None:
        self._actors: dict[str, list[Any]] = {}
        engine_actor: Any = ray.remote(JudgeEngine)
        endpoint_actor: Any = ray.remote(JudgeEndpoint)
        for name, model in models.items():
            if isinstance(model, EndpointModel):
                actor = endpoint_actor.options(
                    name=engine_actor_name(name, 0), num_cpus=0, max_concurrency=1000, **_REPLACED_BY_RAY
                )
                key = os.environ.get(model.api_key_env) if model.api_key_env else None
                self._actors[name] = [actor.remote(name, model, seed, key)]
                continue
            options = {
                "num_cpus": model.num_cpus,
                "num_gpus": model.num_gpus,
                "resources": model.resources,
                "max_concurrency": 1000,
                "runtime_env": {"env_vars": engine_env(model)},
                **_REPLACED_BY_RAY,
            }
            self._actors[name] = [
                engine_actor.options(
                    name=engine_actor_name(name, i), scheduling_strategy=place, **options
                ).remote(model_dirs[name], model, seed, deterministic)
                for i, place in enumerate(scheduling[name])
            ]

    def starting(self) -> dict[str, ray.ObjectRef]:
        """Return a call for each engine that returns once it is up."""
        return {
            f"judge engine {name}/{i}": actor.ready.remote()
            for name, actors in self._actors.items()
            for i, actor in enumerate(actors)
        }

    def ask(self, name: str, queries: Sequence[Query], timeout_s: float) -> list[Answer]:
        """Return an engine's answers, in order; its replicas share the queries.

        Raises:
            ActorTimeoutError: There are none after `timeout_s`.
        """
        actors = self._actors[name]
        shares = [queries[i :: len(actors)] for i in range(len(actors))]
        calls = {
            f"engine {name}/{i}": actor.answer.remote(share)
            for i, (actor, share) in enumerate(zip(actors, shares, strict=True))
        }
        replies = wait_all(calls, timeout_s=timeout_s, doing="answering")
        return [replies[i % len(actors)].answers[i // len(actors)] for i in range(len(queries))]

    def end(self) -> None:
        """End every engine, so that others can have their place."""
        for actor in [actor for actors in self._actors.values() for actor in actors]:
            ray.kill(actor)

    def forget(self) -> None:
        """Have every engine drop its prefix cache."""
        calls = {
            f"judge engine {name}/{i}": actor.forget.remote()
            for name, actors in self._actors.items()
            for i, actor in enumerate(actors)
        }
        wait_all(calls, timeout_s=60.0, doing="dropping its prefix cache")


class JudgePool:
    """One perspective: a judge for each replica of its engine."""

    def __init__(self, perspective: Perspective, pool: JudgePoolConfig, config: Config, seed: int) -> None:
        self.name = perspective.name
        replicas, model = config.replicas_of(pool), config.model_of(pool)
        if isinstance(model, EndpointModel):  # an endpoint bounds its calls itself
            pool = replace(pool, timeout_s=max(pool.timeout_s, model.longest_call_s + 10.0))
        self.config = pool
        self.router = Router(replicas, pool.max_queue)
        supports_prefill = not isinstance(model, EndpointModel)
        judge = PromptedJudge(perspective, pool, model.model, seed, supports_prefill)
        actor = ray.remote(JudgeActor).options(num_cpus=0, max_concurrency=1000, **_REPLACED_BY_RAY)
        self._actors: list[Any] = [
            actor.remote(judge, engine_actor_name(pool.model, replica)) for replica in range(replicas)
        ]

    def starting(self) -> dict[str, ray.ObjectRef]:
        """Return a call for each judge that returns once it is up."""
        return {f"judge {self.name}/{i}": actor.ready.remote() for i, actor in enumerate(self._actors)}

    def judge(self, replica: int, tasks: Sequence[JudgeTask]) -> ray.ObjectRef:
        """Begin judging; the reference holds a `JudgeReply`."""
        return self._actors[replica].judge.remote(tasks)

    @property
    def timeout_s(self) -> float:
        """Return the longest that one call may take: its rounds and tries included."""
        rounds = 2 if self.config.scoring.mode == "reasoned" else 1
        return rounds * self.config.timeout_s * (self.config.retries + 1) + 30.0
