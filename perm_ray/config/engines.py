"""The section of a vLLM engine, for rollouts and for judges, and the model there always is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from perm_ray.config.checks import at_least_zero, one_of, positive, require

BUILTIN_MODEL = "builtin:smollm2-135m-instruct"


@dataclass(frozen=True)
class EngineConfig:
    """One kind of vLLM engine and how many of it. On a CPU, give one core to each engine."""

    replicas: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    tensor_parallel_size: int = 1
    dtype: str = "bfloat16"
    max_model_len: int = 2048
    max_num_seqs: int = 64
    kv_cache_gb: Optional[float] = None
    prefix_caching: bool = True
    gpu_memory_utilization: float = 0.85
    enforce_eager: bool = False
    start_timeout_s: float = 300.0
    resources: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive("engine", self, "replicas", "tensor_parallel_size", "max_model_len")
        positive("engine", self, "max_num_seqs", "gpu_memory_utilization", "start_timeout_s")
        at_least_zero("engine", self, "num_cpus", "num_gpus")
        one_of("engine", self, "dtype", "bfloat16", "float16", "float32")
        require(
            self.num_gpus > 0 or self.tensor_parallel_size == 1,
            "engine.tensor_parallel_size",
            "1 for an engine without GPUs",
            self.tensor_parallel_size,
        )
