"""The driver's handle on all rollout engines: prompts in, completions out as they finish.

An engine that dies while sampling is replaced, given the current weights (`on_replaced`, which weight
sync sets), and what it had not finished is sampled again, with the same random numbers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError, RayError

from perm_ray.cluster.calls import explain, wait_all
from perm_ray.config.engines import EngineConfig
from perm_ray.config.schema import RolloutConfig
from perm_ray.errors import ActorFailedError, ActorTimeoutError
from perm_ray.models.vllm import engine_env
from perm_ray.rollout.actor import RolloutActor, SampleTask, SamplingPlan
from perm_ray.types import Completion, Prompt, SamplingParams

_LOG = logging.getLogger(__name__)
_MAX_REPLACEMENTS = 2  # in one call of `sample`: engines that keep dying have a cause to be mended


@dataclass
class _Stream:
    """One engine's completions on their way: what it still owes, by scenario and index."""

    replica: int
    owed: dict[tuple[str, int], SampleTask] = field(default_factory=dict)


class RolloutPool:
    """`config.engine.replicas` rollout engines. A prompt's completions are sampled by one replica, so
    that its prefix cache holds the prompt once.

    `scheduling` optionally places the engines: one Ray scheduling strategy each. `weights_by` is the backend
    of the weight transfer (`Config.transfer_backend`).
    """

    def __init__(
        self,
        config: RolloutConfig,
        model_dir: Path,
        seed: int,
        deterministic: bool,
        scheduling: Sequence[Any] | None = None,
        weights_by: Literal["nccl", "gloo"] = "gloo",
    ) -> None:
        self._weights_by = weights_by
        self._config = config
        self._model_dir = model_dir
        self._seed = seed
        self._deterministic = deterministic
        self._scheduling = scheduling or ["DEFAULT"] * config.engine.replicas
        self.actors: list[Any] = [self._new_actor(replica) for replica in range(config.engine.replicas)]
        self.on_replaced: Callable[[], None] | None = None

    @property
    def engine_config(self) -> EngineConfig:
        return self._config.engine

    def starting(self) -> dict[str, ray.ObjectRef]:
        """Return a call for each engine that returns once it is up."""
        return {_role(i): actor.ready.remote() for i, actor in enumerate(self.actors)}

    def sample(
        self, prompts: Sequence[Prompt], *, num_completions: int, step: int, purpose: str = "train"
    ) -> Iterator[Completion]:
        """Yield `num_completions` of each prompt as they finish.

        The same seed, step and purpose give each completion the same random numbers, whatever the
        number of replicas. Raises `ActorFailedError` when engines keep dying and, after
        `rollout.timeout_s`, `ActorTimeoutError`.
        """
        plan = SamplingPlan(sampling_params(self._config), f"{self._seed}/{purpose}/{step}")
        tasks = [SampleTask(prompt, index) for prompt in prompts for index in range(num_completions)]
        doing = f"sampling step {step}"
        for replacements_left in reversed(range(_MAX_REPLACEMENTS + 1)):
            dead = yield from self._sample(tasks, plan, doing)
            if not dead:
                return
            if not replacements_left:
                raise ActorFailedError(f"{_role(dead[0].replica)} died again while {doing}: see its log.")
            self._replace([stream.replica for stream in dead])
            if self.on_replaced is not None:
                self.on_replaced()
            tasks = [task for stream in dead for task in stream.owed.values()]

    def held_weights(self, timeout_s: float) -> list[tuple[int, int | None]]:
        """Return each engine's policy version and the checksum of what it received (None: not taken)."""
        calls = {_role(i): actor.held_weights.remote() for i, actor in enumerate(self.actors)}
        return wait_all(calls, timeout_s=timeout_s, doing="reporting its weights' version")

    def _new_actor(self, replica: int) -> Any:
        engine = self._config.engine
        actor = ray.remote(RolloutActor).options(
            num_cpus=engine.num_cpus,
            num_gpus=engine.num_gpus,
            resources=engine.resources,
            scheduling_strategy=self._scheduling[replica],
            max_concurrency=64,
            runtime_env={"env_vars": engine_env(engine)},
        )
        return actor.remote(
            self._model_dir,
            engine,
            self._seed,
            self._deterministic,
            self._config.temperature,
            self._weights_by,
        )

    def _sample(
        self, tasks: Sequence[SampleTask], plan: SamplingPlan, doing: str
    ) -> Generator[Completion, None, list[_Stream]]:
        """Yield what the engines finish; returns the streams of those that died with work undone."""
        streams = self._begin(tasks, plan)
        dead: list[_Stream] = []
        deadline = time.monotonic() + self._config.timeout_s
        while streams:
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                late = ", ".join(_role(stream.replica) for stream in streams.values())
                raise ActorTimeoutError(
                    f"{late} did not finish within {self._config.timeout_s:.0f} s while {doing}: "
                    "raise rollout.timeout_s or sample less."
                )
            stream = streams[ready[0]]
            try:
                completion: Completion = ray.get(next(ready[0]))  # pyright: ignore[reportArgumentType]
            except StopIteration:
                del streams[ready[0]]
            except RayActorError as error:
                _LOG.warning("%s", explain(error, _role(stream.replica), doing))
                dead.append(streams.pop(ready[0]))
            except RayError as error:
                raise explain(error, _role(stream.replica), doing) from error
            else:
                del stream.owed[completion.scenario_id, completion.index]
                yield completion
        return dead

    def _begin(self, tasks: Sequence[SampleTask], plan: SamplingPlan) -> dict[Any, _Stream]:
        """Hand each engine the tasks of its share of the prompts."""
        shares = [_Stream(replica) for replica in range(len(self.actors))]
        prompts = list(dict.fromkeys(task.prompt.scenario.scenario_id for task in tasks))
        for task in tasks:
            scenario_id = task.prompt.scenario.scenario_id
            shares[prompts.index(scenario_id) % len(shares)].owed[scenario_id, task.index] = task
        return {
            self.actors[share.replica]
            .sample.options(num_returns="streaming")
            .remote(list(share.owed.values()), plan): share
            for share in shares
            if share.owed
        }

    def replace_dead(self, timeout_s: float) -> bool:
        """Replace engines that died while nothing was sampled; True if there were any. The new ones
        have the policy's first weights."""
        dead = []
        calls = [actor.held_weights.remote() for actor in self.actors]
        answered, _ = ray.wait(calls, num_returns=len(calls), timeout=timeout_s)
        for call in answered:
            try:
                ray.get(call)
            except RayActorError as error:
                dead.append(calls.index(call))
                _LOG.warning("%s", explain(error, _role(dead[-1]), "nothing was sampled"))
        self._replace(dead)
        return bool(dead)

    def _replace(self, replicas: Sequence[int]) -> None:
        for replica in replicas:
            ray.kill(self.actors[replica])  # it may only be out of reach, and would keep its resources
            self.actors[replica] = self._new_actor(replica)
        calls = {_role(replica): self.actors[replica].ready.remote() for replica in replicas}
        wait_all(calls, timeout_s=self._config.engine.start_timeout_s, doing="replacing one that died")


def sampling_params(config: RolloutConfig) -> SamplingParams:
    """Take each sampling parameter from the field of `rollout` of the same name."""
    by_name = {
        field.name: getattr(config, field.name)
        for field in fields(SamplingParams)
        if field.name != "max_tokens"
    }
    return SamplingParams(max_tokens=config.max_completion_tokens, **by_name)


def _role(index: int) -> str:
    return f"rollout engine {index}"
