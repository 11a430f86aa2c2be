"""A rollout engine: the policy in vLLM, sampled from by the pool and fed by weight sync.

Runs remotely. `sample` streams each completion the moment it finishes; the weight methods carry the
names that vLLM's trainer-side weight transfer calls.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perm_ray.config.engines import EngineConfig
from perm_ray.models.chat import ChatRenderer
from perm_ray.models.vllm import Generation, GenerationRequest, VLLMEngine
from perm_ray.types import Completion, Prompt, SamplingParams, Span


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """Sampling of the completions of one step. `seed_key` names run seed and step (or evaluation):
    with scenario and index it fixes each completion's random numbers, wherever it is sampled."""

    params: SamplingParams
    seed_key: str


@dataclass(frozen=True, slots=True)
class SampleTask:
    """Ask for completion `index` of a prompt."""

    prompt: Prompt
    index: int


def completion_seed(seed_key: str, scenario_id: str, index: int) -> int:
    """Derive a 63-bit seed for one completion, the same in every process."""
    digest = hashlib.sha256(f"{seed_key}/{scenario_id}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class RolloutActor:
    """Made an actor by `pool.py`; one vLLM engine each."""

    def __init__(
        self,
        model_dir: Path,
        config: EngineConfig,
        seed: int,
        exclusive: bool,
        temperature: float,
        weights_by: Literal["nccl", "gloo"],
    ) -> None:
        self._renderer = ChatRenderer(model_dir)
        self._engine = VLLMEngine(
            model_dir,
            config,
            seed=seed,
            weights_by=weights_by,
            exclusive=exclusive,
            temperature=temperature,
        )

    async def ready(self) -> None:
        """Returns once the engine is up."""

    async def sample(self, tasks: Sequence[SampleTask], plan: SamplingPlan) -> AsyncIterator[Completion]:
        """Yield the completion of each task, in finishing order."""
        requests = [
            GenerationRequest(
                prompt_ids=task.prompt.token_ids,
                sampling=plan.params,
                seed=completion_seed(plan.seed_key, task.prompt.scenario.scenario_id, task.index),
            )
            for task in tasks
        ]
        async for position, generation in self._engine.generate(requests):
            yield self._completion(tasks[position], generation)

    def _completion(self, task: SampleTask, generation: Generation) -> Completion:
        return Completion(
            scenario_id=task.prompt.scenario.scenario_id,
            index=task.index,
            text=task.prompt.prefix + self._renderer.decode(generation.token_ids),
            spans=(Span("assistant", generation.token_ids, generation.logprobs, generation.versions),),
            finish_reason=generation.finish_reason,
        )

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        await self._engine.control(
            lambda engine: engine.collective_rpc(
                "init_weight_transfer_engine", kwargs={"init_info": init_info}
            )
        )

    async def start_weight_update(self) -> None:
        """Drops the prefix cache first: it was computed with the weights that are about to go."""

        def start(engine: Any) -> None:
            if not engine.reset_prefix_cache():
                raise RuntimeError("weights were sent while completions were still being sampled")
            engine.collective_rpc("start_weight_update")

        await self._engine.control(start)

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        await self._engine.control(
            lambda engine: engine.collective_rpc("update_weights", kwargs={"update_info": update_info})
        )

    async def finish_weight_update(self, version: int) -> None:
        """Note that the update is complete: what is sampled from now on is labelled `version`."""

        def finish(engine: Any) -> None:
            engine.collective_rpc("finish_weight_update")
            engine.set_weight_version(str(version))

        await self._engine.control(finish)

    async def held_weights(self) -> tuple[int, int | None]:
        """Report the version of the last completed update, and its checksum as it arrived, if its backend
        takes one."""
        return await self._engine.control(
            lambda engine: (int(engine.get_weight_version()), engine.collective_rpc("weight_checksum")[0])
        )
