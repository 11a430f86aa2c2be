"""Arguments that vLLM's engines get, by device, and how its answers are read. No engine is started."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perm_ray.config.engines import EngineConfig
from perm_ray.config.schema import RolloutConfig
from perm_ray.models.vllm import (
    GenerationRequest,
    _generation,
    _vllm_params,
    engine_env,
    engine_kwargs,
)
from perm_ray.rollout.pool import sampling_params
from perm_ray.types import FinishReason, SamplingParams


def kwargs(temperature: float = 1.0, **changes: Any) -> dict[str, Any]:
    config = EngineConfig(max_model_len=4096, **changes)
    return engine_kwargs(Path("/models/m"), config, 7, temperature=temperature)


@pytest.mark.parametrize(("ranks", "executor"), [(1, "uni"), (2, "mp")])
def test_an_engine_on_gpus_names_its_executor(ranks: int, executor: str) -> None:
    """Unnamed, vLLM takes Ray's inside a placement group, and fails on a bundle of two GPUs."""
    found = kwargs(num_gpus=float(ranks), tensor_parallel_size=ranks)
    assert found["distributed_executor_backend"] == executor
    assert found["tensor_parallel_size"] == ranks


def test_workarounds_of_the_cpu_stay_on_the_cpu() -> None:
    cpu, gpu = kwargs(), kwargs(num_gpus=1.0)
    assert (cpu["enable_chunked_prefill"], gpu["enable_chunked_prefill"]) == (False, True)
    assert (cpu["max_num_batched_tokens"], gpu["max_num_batched_tokens"]) == (4096, 8192)
    assert cpu["distributed_executor_backend"] == "uni"
    assert (cpu["enforce_eager"], gpu["enforce_eager"]) == (True, False)
    assert "block_size" not in gpu
    assert engine_env(EngineConfig(num_gpus=1.0))["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


def test_logprobs_are_those_of_the_distribution_that_is_sampled() -> None:
    assert kwargs()["logprobs_mode"] == "raw_logprobs"  # the same at temperature 1
    assert kwargs(temperature=0.7)["logprobs_mode"] == "processed_logprobs"


def test_sampling_parameters_go_from_the_configuration_to_vllm_by_name() -> None:
    params = sampling_params(RolloutConfig(temperature=0.7, top_p=0.9, max_completion_tokens=12))
    assert params == SamplingParams(max_tokens=12, temperature=0.7, top_p=0.9)
    passed = _vllm_params(GenerationRequest((1, 2), params, seed=5))
    assert (passed.max_tokens, passed.temperature, passed.top_p, passed.seed) == (12, 0.7, 0.9, 5)


def test_an_answer_that_saw_two_versions_keeps_both() -> None:
    answer = SimpleNamespace(
        token_ids=[4, 5, 6],
        logprobs=[{token: SimpleNamespace(logprob=-token / 10)} for token in (4, 5, 6)],
        finish_reason="length",
        weight_versions=[
            SimpleNamespace(version="3", start=0, end=2),
            SimpleNamespace(version="4", start=2, end=3),
        ],
    )
    output: Any = SimpleNamespace(outputs=[answer], num_cached_tokens=None)
    found = _generation(output, GenerationRequest((1,), SamplingParams(3)))
    assert found.versions == ((3, 2), (4, 1))
    assert found.logprobs == (-0.4, -0.5, -0.6)
    assert found.finish_reason == FinishReason.LENGTH
