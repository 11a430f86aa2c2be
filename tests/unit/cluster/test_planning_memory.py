"""Memory as `cluster/planning/memory.py` counts it: against values worked by hand, against what torch really
keeps, and what must grow or shrink with what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perm_ray.cluster.planning.memory import (
    GB,
    engine_memory,
    head_bytes,
    kv_bytes_per_token,
    layer_activation_bytes,
    rank_memory,
)
from perm_ray.cluster.planning.shapes import ModelShape, model_shape
from perm_ray.config.engines import EngineConfig
from perm_ray.config.training import LoraConfig, ObjectiveConfig, SyncConfig, TrainerConfig

QWEN_7B = model_shape("Qwen/Qwen2.5-7B-Instruct")
SMALL = ModelShape(2, 8, 16, 4, 2, 2, 100)
GPU_ENGINE = EngineConfig(num_gpus=1)
GPU_TRAINER = TrainerConfig(num_gpus=1, num_ranks=4)
SYNC = SyncConfig(backend="nccl")


# ---- engines --------------------------------------------------------------------------------


def test_bytes_of_the_cache_by_hand() -> None:
    assert kv_bytes_per_token(QWEN_7B, 2, 1) == 2 * 28 * 4 * 128 * 2 == 57_344
    assert kv_bytes_per_token(QWEN_7B, 2, 2) == 57_344 // 2
    assert kv_bytes_per_token(QWEN_7B, 2, 7) == 57_344 // 4  # never less than one head
    assert kv_bytes_per_token(QWEN_7B, 4, 1) == 2 * 57_344


def test_an_engines_cache_is_what_the_rest_leaves() -> None:
    memory = engine_memory(QWEN_7B, GPU_ENGINE, 80 * GB, None)
    assert memory.weights == 2 * 7_615_616_512
    batch, logits = 8192, 3 * 4 * 64 * 152_064
    assert memory.activations == 2 * batch * (4 * 3584 + 3 * 18_944 + 3584 + 2 * 512) + logits
    assert (memory.graphs, memory.overhead, memory.sync_buffers) == (GB, GB, 0)
    assert memory.total == pytest.approx(0.85 * 80 * GB, abs=2)
    assert memory.sequences == memory.kv_cache // (2048 * 57_344)
    receiving = engine_memory(QWEN_7B, GPU_ENGINE, 80 * GB, SYNC)
    assert receiving.sync_buffers == 2 * (GB + 2 * 152_064 * 3584)
    assert receiving.overhead == 2 * GB
    by_gloo = engine_memory(QWEN_7B, GPU_ENGINE, 80 * GB, SyncConfig(backend="gloo"))
    assert by_gloo.sync_buffers == 2 * 152_064 * 3584  # its buffers lie in host memory
    assert by_gloo.overhead == GB


def test_an_engine_without_gpus_has_the_cache_that_is_set() -> None:
    memory = engine_memory(SMALL, EngineConfig(), 80 * GB, None)
    assert memory.kv_cache == GB // 2
    assert memory.graphs == 0
    assert engine_memory(SMALL, EngineConfig(kv_cache_gb=2), 0, None).kv_cache == 2 * GB
    # a block is of 32 tokens there: a sequence of 40 takes two
    short = engine_memory(SMALL, EngineConfig(max_model_len=40), 0, None)
    assert short.sequences == (GB // 2) // (64 * short.kv_bytes_per_token)


def test_an_engine_changes_as_its_settings_do() -> None:
    def made(**changes: float) -> tuple[int, int]:
        memory = engine_memory(QWEN_7B, replace(GPU_ENGINE, **changes), 80 * GB, None)
        return memory.sequences, memory.without_cache

    sequences, rest = made()
    assert made(tensor_parallel_size=2, num_gpus=2)[1] < rest
    assert made(tensor_parallel_size=2, num_gpus=2)[0] > sequences
    assert made(gpu_memory_utilization=0.5)[0] < sequences
    assert made(max_model_len=4096)[0] < sequences / 1.9
    assert made(max_num_seqs=256)[1] > rest
    assert made(enforce_eager=True) > (sequences, 0)


# ---- the trainer ----------------------------------------------------------------------------


def test_a_layers_activations_by_hand() -> None:
    # h = a = k = 8, i = 32, in bfloat16: 62 h, and the log-sums of 4 heads
    shape = ModelShape(1, 8, 32, 4, 4, 2, 100)
    assert layer_activation_bytes(shape, 2) == 62 * 8 + 16
    assert layer_activation_bytes(shape, 2, lora_rank=3) == 62 * 8 + 16 + 42
    assert layer_activation_bytes(shape, 2, share_prompts=True) == 62 * 8 + 16 + 4 * 2 * shape.kv_width


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_layers_activations_are_at_least_what_torch_keeps(dtype: str, shared: bool) -> None:
    """The policy's own forward pass over a packed row, with two layers and with four."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from perm_ray.trainer.packing import ATTENTION, pack
    from tests.support.sequences import one_turn

    half = tuple(range(64))
    sequence = one_turn(half, half, (0.0,) * 64, 0.0)
    batch = pack(((sequence,) * 8,) if shared else ((sequence,),) * 2, torch.device("cpu"))

    def kept(layers: int) -> int:
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
        )
        model = LlamaForCausalLM(config).to(getattr(torch, dtype))
        model.set_attn_implementation(ATTENTION)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        tensors: dict[int, torch.Tensor] = {}  # they are kept here, so that no address is used again

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            address = tensor.untyped_storage().data_ptr()
            if address not in weights:
                tensors[address] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.base_model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                layout=batch.layout,
            )
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())

    measured = (kept(4) - kept(2)) / 2 / batch.input_ids.shape[1]
    width = 2 if dtype == "bfloat16" else 4
    counted = layer_activation_bytes(ModelShape(1, 128, 512, 4, 2, 32, 64), width, share_prompts=shared)
    assert measured <= counted <= 1.15 * measured


def test_the_head_never_holds_a_row_of_logits_for_each_token() -> None:
    tokens = 16_384
    assert head_bytes(QWEN_7B, 2, tokens) == tokens * (3584 * 8 + 24 * 256)
    assert head_bytes(QWEN_7B, 2, tokens) < tokens * QWEN_7B.vocabulary * 4 / 10
    assert head_bytes(SMALL, 2, 64) == 64 * (8 * 8 + 24 * 100)  # a block is no wider than the vocabulary


@pytest.mark.parametrize(
    ("stage", "weights", "optimizer", "gradients"),
    [(1, 2.0, 3.0, 6.0), (2, 2.0, 3.0, 1.5), (3, 0.5, 3.0, 1.5)],
)
def test_bytes_a_parameter_by_zero_stage_on_four_ranks(
    stage: int, weights: float, optimizer: float, gradients: float
) -> None:
    terms = rank_memory(QWEN_7B, replace(GPU_TRAINER, zero_stage=stage), SYNC, 2048).peak
    size = QWEN_7B.parameters
    assert terms.weights == weights * size
    assert terms.optimizer == optimizer * size
    assert terms.gradients == gradients * size
    assert terms.reference == 2 * size


def test_float32_at_stage_0_has_no_second_copy() -> None:
    plain = TrainerConfig(dtype="float32", zero_stage=0, num_ranks=2)
    terms = rank_memory(SMALL, plain, SYNC, 64).peak
    size = SMALL.parameters
    assert (terms.weights, terms.optimizer, terms.gradients) == (4 * size, 8 * size, 4 * size)


def test_an_adapter_is_all_that_is_trained_and_needs_no_reference() -> None:
    lora = replace(GPU_TRAINER, lora=LoraConfig(rank=16))
    adapter = QWEN_7B.adapter_parameters(16, LoraConfig().targets)
    terms = {terms.phase: terms for terms in rank_memory(QWEN_7B, lora, SYNC, 2048).phases}["backward"]
    assert terms.weights == 2 * (QWEN_7B.parameters + adapter)
    assert terms.optimizer == 12 * adapter // 4
    assert terms.gradients == 6 * adapter // 4
    assert terms.reference == 0


def peak(trainer: TrainerConfig, longest: int = 2048) -> int:
    return rank_memory(QWEN_7B, trainer, SYNC, longest).peak.total


def test_a_rank_changes_as_its_settings_do() -> None:
    base = peak(GPU_TRAINER)
    assert peak(replace(GPU_TRAINER, num_ranks=8)) < base < peak(replace(GPU_TRAINER, num_ranks=2))
    assert peak(replace(GPU_TRAINER, zero_stage=3)) < base < peak(replace(GPU_TRAINER, zero_stage=1))
    assert peak(replace(GPU_TRAINER, offload_optimizer=True)) == base - 3 * QWEN_7B.parameters
    assert peak(replace(GPU_TRAINER, micro_batch_tokens=32_768)) > base
    assert peak(replace(GPU_TRAINER, gradient_checkpointing=False)) > base
    assert peak(GPU_TRAINER, longest=32_768) == peak(replace(GPU_TRAINER, micro_batch_tokens=32_768))
    without = replace(GPU_TRAINER, objective=ObjectiveConfig(kl_coef=0))
    assert peak(without) == base - 2 * QWEN_7B.parameters
    offloaded = peak(replace(GPU_TRAINER, offload_reference=True))
    assert peak(without) <= offloaded < base  # it is there while it is asked


def test_zero_3_loads_the_whole_model_before_it_is_divided() -> None:
    shape = model_shape("Qwen/Qwen2.5-72B-Instruct")
    trainer = TrainerConfig(num_gpus=1, num_ranks=64, zero_stage=3, lora=LoraConfig(rank=8))
    terms = rank_memory(shape, trainer, SYNC, 2048).peak
    assert terms.phase == "load"
    assert terms.total > 2 * shape.parameters > 80 * GB


def test_what_is_offloaded_is_counted_in_host_memory() -> None:
    base = rank_memory(QWEN_7B, GPU_TRAINER, SYNC, 2048).host
    both = replace(GPU_TRAINER, offload_optimizer=True, offload_reference=True)
    moved = (2 + 16 // 4) * QWEN_7B.parameters
    assert rank_memory(QWEN_7B, both, SYNC, 2048).host == base + moved
    assert rank_memory(SMALL, TrainerConfig(), SYNC, 64).host == 0  # there it is the memory itself
