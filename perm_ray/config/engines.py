"""Models that somebody asks by name: vLLM engines of ours, and endpoints elsewhere."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from perm_ray.config.redact import redact_text
from perm_ray.config.section import Bool, Float, Int, Positive, require, section

BUILTIN_MODEL = "builtin:smollm2-135m-instruct"
DTYPE = "of the weights (auto: float32 on a CPU without AVX-512)"


@section("engine")
class EngineConfig:
    """One kind of vLLM engine and how many replicas of it. On a CPU, give one core to each engine."""

    replicas: Int = Field(default=1, gt=0, description="engines of this kind")
    num_cpus: Float = Field(default=1.0, ge=0, description="cores of each (on a CPU: one is best)")
    num_gpus: Float = Field(default=0.0, ge=0, description="GPUs of each; a fraction shares one")
    tensor_parallel_size: Int = Field(default=1, gt=0, description="GPUs that one engine spans")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(default="auto", description=DTYPE)
    max_model_len: Int = Field(default=2048, gt=0, description="context length: prompt and completion")
    max_num_seqs: Int = Field(default=64, gt=0, description="batch size: sequences decoded together")
    kv_cache_gb: Float | None = Field(
        default=None, gt=0, description="memory of the KV cache; null: 0.5 on a CPU, vLLM decides on a GPU"
    )
    prefix_caching: Bool = Field(default=True, description="keep the KV cache of shared prefixes")
    gpu_memory_utilization: Float = Field(default=0.85, gt=0, description="share of a GPU's memory to take")
    enforce_eager: Bool = Field(default=False, description="no CUDA graphs: starts faster, runs slower")
    start_timeout_s: Float = Field(default=300.0, gt=0, description="timeout for loading the model")
    resources: dict[str, Positive] = Field(
        default_factory=dict, description="custom Ray resources that each takes, e.g. {rollout: 1}"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        custom_resources(self.resources)
        if self.dtype == "auto":
            object.__setattr__(self, "dtype", fast_dtype(self.num_gpus))
        parallel, expected = self.tensor_parallel_size, "1 for an engine without GPUs"
        require(self.num_gpus > 0 or parallel == 1, "tensor_parallel_size", expected, parallel)
        return self


@section("models.<name>")
class EngineModel(EngineConfig):
    """A model in engines of ours. Rollout engines always hold the policy; these hold a model of their own."""

    model: str = Field(default=BUILTIN_MODEL, min_length=1, description="built-in name, folder or hub id")
    adapter: str | None = Field(
        default=None, min_length=1, description="folder of a LoRA adapter that is merged into it; null: none"
    )
    enable_thinking: Bool | None = Field(default=None, description="for the chat template; null: its default")


@section("models.<name>")
class EndpointModel:
    """A model that lives elsewhere, OpenAI-compatible. A key's variable is named here, never the key."""

    base_url: str = Field(description="address, such as http://host:8000/v1")
    model: str = Field(min_length=1, description="the model's name at the endpoint")
    api_key_env: str | None = Field(
        default=None, description="NAME of the environment variable that holds the key; null: none is needed"
    )
    enable_thinking: Bool | None = Field(default=None, description="for the chat template; null: its default")
    max_concurrency: Int = Field(default=16, gt=0, description="concurrent requests at most")
    rpm: Int | None = Field(default=None, gt=0, description="requests a minute at most; null: no limit")
    tpm: Int | None = Field(default=None, gt=0, description="tokens a minute at most; null: no limit")
    timeout_s: Float = Field(default=60.0, gt=0, description="timeout of one request")
    max_retries: Int = Field(default=3, ge=0, description="retries after 429, 5xx, timeouts, lost links")
    queue_timeout_s: Float = Field(default=240.0, gt=0, description="timeout in the client's own queue")
    logprobs: Bool = Field(default=False, description="it returns log-probabilities, which expected needs")
    structured: Literal["none", "json_schema", "regex"] = Field(
        default="none", description="guided decoding it offers"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        shown = redact_text(self.base_url)
        valid = re.match(r"https?://[^/?#\s]", self.base_url) is not None and shown == self.base_url
        require(valid, "base_url", "an address such as http://host:8000/v1, without a password or key", shown)
        named = self.api_key_env is None or re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env)
        require(bool(named), "api_key_env", "the NAME of an environment variable or null", "something else")
        return self

    @property
    def longest_call_s(self) -> float:
        """Return the most that one answer may take, in seconds: its time in the queue and every retry."""
        return self.queue_timeout_s + self.timeout_s * (self.max_retries + 1)


def fast_dtype(num_gpus: float) -> Literal["bfloat16", "float32"]:
    """Return the data type that `auto` stands for, on this machine.

    Without AVX-512 an x86 CPU has no fast bfloat16: sampling and training then take five to seven times as
    long as in float32 (docs/explanation/measured.md).
    """
    return "float32" if num_gpus == 0 and _without_avx512() else "bfloat16"


@functools.cache
def _without_avx512() -> bool:
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
    return "avx2" in words and "avx512f" not in words


def custom_resources(resources: Mapping[str, float]) -> None:
    """Refuse CPUs and GPUs among a cluster's custom resources: they have keys of their own."""
    for name in resources:
        reserved = name in ("CPU", "GPU", "memory")
        require(not reserved, "resources", "without CPU and GPU (num_cpus, num_gpus)", name)


def _kind(value: Any) -> str:
    """Tell the two kinds of model apart: an endpoint has an address."""
    remote = isinstance(value, EndpointModel) or (isinstance(value, Mapping) and "base_url" in value)
    return "<endpoint>" if remote else "<engine>"


Model = Annotated[
    Annotated[EngineModel, Tag("<engine>")] | Annotated[EndpointModel, Tag("<endpoint>")],
    Discriminator(_kind),
]
