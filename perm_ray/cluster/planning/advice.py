"""What to change where something does not fit: the first of a few changes with which it does.

`plan.py` puts it into its refusals. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from perm_ray.cluster.planning.layout import check_engine
from perm_ray.cluster.planning.memory import GB, EngineMemory, engine_memory, rank_memory
from perm_ray.cluster.planning.shapes import ModelShape
from perm_ray.config.engines import EngineConfig
from perm_ray.config.training import LoraConfig, SyncConfig, TrainerConfig
from perm_ray.errors import ConfigError

_NOTHING = "take a smaller model or GPUs with more memory"
_USEFUL_SEQUENCES = 8  # an engine that holds fewer at once is started, but is hardly what was wanted


def engine_budget(engine: EngineConfig, gpu_bytes: int) -> int:
    """What an engine may take of each of its GPUs: all, or its share. Then it does not matter who else is
    placed on the GPU."""
    return int(min(1.0, engine.num_gpus) * gpu_bytes)


def engine_fits(memory: EngineMemory, budget: int) -> bool:
    return memory.sequences >= 1 and memory.total <= budget


def engine_advice(
    key: str,
    shape: ModelShape,
    engine: EngineConfig,
    gpu_bytes: int,
    gpus_per_node: int,
    sync: SyncConfig | None,
) -> str:
    """One change to the section `key` with which the engine fits."""
    for text, changed in _engine_changes(key, engine, gpu_bytes):
        try:
            check_engine(key, changed, shape, gpus_per_node)
        except ConfigError:
            continue
        memory = engine_memory(shape, changed, gpu_bytes, sync)
        useful = memory.sequences >= min(_USEFUL_SEQUENCES, changed.max_num_seqs)
        if useful and engine_fits(memory, engine_budget(changed, gpu_bytes)):
            return f"set {text}"
    return _NOTHING


def _engine_changes(key: str, engine: EngineConfig, gpu_bytes: int) -> Iterator[tuple[str, EngineConfig]]:
    if engine.kv_cache_gb is not None:
        for cache in (engine.kv_cache_gb / 2, engine.kv_cache_gb / 4):
            yield f"{key}.kv_cache_gb={cache:g}", replace(engine, kv_cache_gb=cache)
        for cache in (0.02, 0.05, 0.1, 0.25):
            value = round(cache * gpu_bytes / GB, 1)
            yield f"{key}.kv_cache_gb={value:g}", replace(engine, kv_cache_gb=value)
    for share in (0.9, 0.8, 0.6, 0.4):  # of the budget: more for a cache, or less for what is beside it
        used = round(share * min(1.0, engine.num_gpus), 2)
        yield f"{key}.gpu_memory_utilization={used:g}", replace(engine, gpu_memory_utilization=used)
    if engine.max_num_seqs > 16:
        yield f"{key}.max_num_seqs=16", replace(engine, max_num_seqs=16)
    if engine.num_gpus < 1:
        yield f"{key}.num_gpus=1", replace(engine, num_gpus=1.0, gpu_memory_utilization=0.9)
    for parallel in (2, 4, 8):
        if parallel > engine.tensor_parallel_size:
            text = f"{key}.tensor_parallel_size={parallel} and {key}.num_gpus={parallel}"
            yield text, replace(engine, tensor_parallel_size=parallel, num_gpus=float(parallel))


def trainer_advice(
    shape: ModelShape, trainer: TrainerConfig, sync: SyncConfig, longest: int, budget: int
) -> str:
    """One change to `trainer` with which a rank fits."""
    for text, changed in _trainer_changes(trainer, longest):
        if rank_memory(shape, changed, sync, longest).peak.total <= budget:
            return f"set {text}"
    return _NOTHING


def _trainer_changes(trainer: TrainerConfig, longest: int) -> Iterator[tuple[str, TrainerConfig]]:
    if not trainer.gradient_checkpointing:
        yield "trainer.gradient_checkpointing=true", replace(trainer, gradient_checkpointing=True)
    for part in (2, 4, 8):
        tokens = max(longest, trainer.micro_batch_tokens // part)
        if tokens < trainer.micro_batch_tokens:
            yield f"trainer.micro_batch_tokens={tokens}", replace(trainer, micro_batch_tokens=tokens)
    if trainer.offload_reference is False and trainer.num_gpus > 0:
        yield "trainer.offload_reference=true", replace(trainer, offload_reference=True)
    sharded = replace(trainer, zero_stage=3)
    if trainer.zero_stage < 3:
        yield "trainer.zero_stage=3", sharded
    for times in (2, 4, 8):
        ranks = times * trainer.num_ranks
        yield f"trainer.num_ranks={ranks}", replace(trainer, num_ranks=ranks)
        text = f"trainer.zero_stage=3 and trainer.num_ranks={ranks}"
        yield text, replace(sharded, num_ranks=ranks)
    if trainer.num_gpus > 0:
        text = "trainer.zero_stage=3 and trainer.offload_optimizer=true"
        yield text, replace(sharded, offload_optimizer=True)
    if trainer.lora.rank == 0:
        yield "trainer.lora.rank=16", replace(trainer, lora=LoraConfig(rank=16))
        text = "trainer.zero_stage=3 and trainer.lora.rank=16"
        yield text, replace(sharded, lora=LoraConfig(rank=16))
