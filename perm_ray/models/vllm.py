"""One vLLM engine inside this process, built and stepped by a thread of its own.

Rollout actors and judge engines are both built on it. The caller's side is asyncio: `generate` yields
each answer the moment it finishes; `control` runs a function on the engine thread between two steps
(weight updates, cache resets), so that nothing else touches the engine meanwhile.

All requests of one `generate` call enter the engine together, before its next step. With
`exclusive=True` calls also take turns and each starts with an empty prefix cache: then an answer
depends on its own call alone, never on what else happened to be running, and a run can be repeated
bit for bit.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from perm_ray.config.engines import EngineConfig
from perm_ray.errors import ModelError, RunError
from perm_ray.types import FinishReason, SamplingParams

if TYPE_CHECKING:
    from vllm import RequestOutput

T = TypeVar("T")

GPU_BATCH_TOKENS = 8192  # tokens of one engine step, prefill and decoding together; vLLM's server default


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer to be sampled after `prompt_ids`.

    Args:
        prompt_ids: The rendered prompt.
        sampling: Passed on to vLLM field by field.
        seed: Makes the sample depend on nothing but the logits.
        candidate_ids: Tokens whose log-probabilities are wanted at every position.
        regex: Constrains the answer.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int | None = None
    candidate_ids: tuple[int, ...] = ()
    regex: str | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """One finished answer.

    Args:
        token_ids: The sampled tokens.
        logprobs: The log-probability of each, in nats.
        finish_reason: Why it ended.
        versions: Run-length pairs (version of the weights, tokens sampled from them).
        candidate_logprobs: Those of the requested candidates at the first position.
        prompt_tokens: Length of the prompt.
        cached_tokens: Tokens of the prompt that were in the prefix cache.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    versions: tuple[tuple[int, int], ...]
    candidate_logprobs: Mapping[int, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    cached_tokens: int = 0


def engine_env(config: EngineConfig) -> dict[str, str]:
    """Environment of a process that will hold an engine; libraries read it when they are imported."""
    env = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    if config.num_gpus == 0:
        # One thread an engine: two engines with two threads each are eight times slower (STACK.md).
        env |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    else:  # each request has a seed or is greedy, which FlashInfer's sampler cannot do: do not compile it
        env["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    return env


def engine_kwargs(
    model_dir: Path,
    config: EngineConfig,
    seed: int,
    weights_by: Literal["nccl", "gloo"] | None = None,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Choose vLLM's `EngineArgs` for `config`; differences between CPU and GPU are decided here alone.

    `weights_by` is the backend of the weight transfer, None for an engine that keeps its weights.
    At another temperature than 1, log-probabilities are those of the distribution that was sampled from
    (after temperature and top-p); at 1 they are the raw ones, which are the same but for a top-p.
    """
    kwargs: dict[str, Any] = {
        "model": str(model_dir),
        "dtype": config.dtype,
        "seed": seed,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "enable_prefix_caching": config.prefix_caching,
        "logprobs_mode": "raw_logprobs" if temperature == 1 else "processed_logprobs",
        "disable_log_stats": True,
        "trust_remote_code": False,
    }
    if config.num_gpus == 0:
        kwargs |= {
            "enforce_eager": True,
            "block_size": 32,
            # A per-request seed and a prefill cut in two kill vLLM 0.32's CPU sampler.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(config.max_model_len, 2048),
            "distributed_executor_backend": "uni",
            "kv_cache_memory_bytes": int((config.kv_cache_gb or 0.5) * 2**30),
        }
    else:
        kwargs |= {
            "enforce_eager": config.enforce_eager,
            "enable_chunked_prefill": True,
            "max_num_batched_tokens": max(config.max_model_len, GPU_BATCH_TOKENS),
            "tensor_parallel_size": config.tensor_parallel_size,
            # Left to itself vLLM takes Ray inside a placement group, and refuses a bundle of several GPUs.
            "distributed_executor_backend": "mp" if config.tensor_parallel_size > 1 else "uni",
            "gpu_memory_utilization": config.gpu_memory_utilization,
        }
        if config.kv_cache_gb is not None:
            kwargs["kv_cache_memory_bytes"] = int(config.kv_cache_gb * 2**30)
    if weights_by is not None:
        from vllm.config import WeightTransferConfig

        kwargs["weight_transfer_config"] = WeightTransferConfig(backend=weights_by)
        kwargs["worker_extension_cls"] = "perm_ray.models.transfer.WorkerExtension"
    return kwargs


class VLLMEngine:
    """An engine that holds `model_dir`; see the module's docstring for how calls share it."""

    def __init__(
        self,
        model_dir: Path,
        config: EngineConfig,
        *,
        seed: int = 0,
        weights_by: Literal["nccl", "gloo"] | None = None,
        exclusive: bool = False,
        temperature: float = 1.0,
    ) -> None:
        kwargs = engine_kwargs(model_dir, config, seed, weights_by, temperature)
        self._engine: Any = None
        self._turn = asyncio.Lock() if exclusive else None
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._listeners: dict[str, Callable[[RequestOutput], None]] = {}
        self._ids = itertools.count()
        built: Future[None] = Future()
        threading.Thread(target=self._run, args=(kwargs, built), name="vllm-engine", daemon=True).start()
        try:  # fault boundary: vLLM says why in many ways, none of them one sentence
            built.result()
        except Exception as error:
            reason = " ".join(str(error).split())[:600]
            raise ModelError(f"vLLM cannot serve {model_dir}: {type(error).__name__}: {reason}") from error

    async def generate(
        self, requests: Sequence[GenerationRequest], started: Callable[[], None] = lambda: None
    ) -> AsyncIterator[tuple[int, Generation]]:
        """Yield `(index of the request, its answer)` in the order in which they finish.

        `started` is called when the engine begins with them: an exclusive engine may have been busy.
        """
        if self._turn is None:
            started()
            async for item in self._generate(requests):
                yield item
            return
        async with self._turn:
            started()
            if not await self.control(lambda engine: engine.reset_prefix_cache()):
                raise RunError("An exclusive engine still had requests of an earlier call.")
            async for item in self._generate(requests):
                yield item

    async def control(self, function: Callable[[Any], T]) -> T:
        """Run `function(LLMEngine)` on the engine thread, between two of its steps."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            # Fault boundary: whatever the function raises belongs to its caller, not to the engine.
            try:
                result = function(self._engine)
            except Exception as error:
                loop.call_soon_threadsafe(_settle, future, None, error)
            else:
                loop.call_soon_threadsafe(_settle, future, result, None)

        self._inbox.put(run)
        return await future

    async def _generate(self, requests: Sequence[GenerationRequest]) -> AsyncIterator[tuple[int, Generation]]:
        loop = asyncio.get_running_loop()
        finished: asyncio.Queue[tuple[int, RequestOutput]] = asyncio.Queue()
        names = [str(next(self._ids)) for _ in requests]

        def tell(index: int, output: RequestOutput) -> None:
            loop.call_soon_threadsafe(finished.put_nowait, (index, output))

        def add(engine: Any) -> None:
            for index, (name, request) in enumerate(zip(names, requests, strict=True)):
                engine_id = engine.add_request(
                    name, {"prompt_token_ids": list(request.prompt_ids)}, _vllm_params(request)
                )
                self._listeners[_external(engine_id)] = partial(tell, index)

        try:
            await self.control(add)
            for _ in requests:
                index, output = await finished.get()
                yield index, _generation(output, requests[index])
        finally:
            if any(name in self._listeners for name in names):  # the caller went away, or one failed
                self._inbox.put(lambda: self._drop(names))

    def _drop(self, names: Sequence[str]) -> None:
        waiting = [name for name in names if self._listeners.pop(name, None) is not None]
        self._engine.abort_request(waiting)

    def _run(self, kwargs: Mapping[str, Any], built: Future[None]) -> None:
        """Build the engine and serve it, in this one thread: vLLM has a current CUDA stream for each thread,
        and what is captured on one stream and stepped on another reads results before they are there."""
        try:  # the caller in __init__ raises it
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            self._engine = LLMEngine.from_engine_args(EngineArgs(**kwargs))
            self._engine.set_weight_version("0")
        except Exception as error:
            built.set_exception(error)
        else:
            built.set_result(None)
            self._serve()

    def _serve(self) -> None:
        """Run what was sent, step while there is work, hand out what finished."""
        try:
            while True:
                if not self._engine.has_unfinished_requests():
                    self._inbox.get()()
                while not self._inbox.empty():
                    self._inbox.get()()
                for output in self._engine.step() if self._engine.has_unfinished_requests() else ():
                    if output.finished:
                        self._listeners.pop(_external(output.request_id), lambda _: None)(output)
        except BaseException:
            # Fault boundary: an engine that broke is of no use, and an actor around it would only hang
            # its callers. With the process gone they learn of it at once, and it can be replaced.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)


def _settle(future: asyncio.Future, result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _external(request_id: str) -> str:
    """vLLM appends a random suffix (`-xxxxxxxx`) to the ids it is given."""
    return request_id.split("-", 1)[0]


def _vllm_params(request: GenerationRequest) -> Any:
    from vllm import SamplingParams as VLLMSamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    return VLLMSamplingParams(
        **asdict(request.sampling),
        seed=request.seed,
        logprobs=None if request.candidate_ids else 0,
        logprob_token_ids=list(request.candidate_ids) or None,
        structured_outputs=StructuredOutputsParams(regex=request.regex) if request.regex else None,
        output_kind=RequestOutputKind.FINAL_ONLY,
        detokenize=False,
    )


def _generation(output: RequestOutput, request: GenerationRequest) -> Generation:
    answer = output.outputs[0]
    positions: Any = answer.logprobs or []
    first = positions[0] if positions else {}
    return Generation(
        token_ids=tuple(answer.token_ids),
        logprobs=tuple(
            position[token].logprob for position, token in zip(positions, answer.token_ids, strict=True)
        ),
        finish_reason=FinishReason(answer.finish_reason or "abort"),
        versions=tuple((int(run.version), run.end - run.start) for run in answer.weight_versions or ()),
        candidate_logprobs={token: first[token].logprob for token in request.candidate_ids if token in first},
        prompt_tokens=len(request.prompt_ids),
        cached_tokens=output.num_cached_tokens or 0,
    )


def check_prompt_fits(config: EngineConfig, prompt_tokens: int, max_tokens: int, role: str) -> None:
    """Refuse what vLLM would silently cut. Raises `ModelError`."""
    if prompt_tokens + max_tokens > config.max_model_len:
        raise ModelError(
            f"{role}: a prompt of {prompt_tokens} tokens and {max_tokens} to sample exceed the engine's "
            f"max_model_len of {config.max_model_len}: raise it or shorten the prompt."
        )
