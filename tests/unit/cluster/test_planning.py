"""Shapes against published counts, and engines that no GPUs can hold (memory: `test_planning_memory.py`)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from perm_ray.cluster.planning.plan import check_engine
from perm_ray.cluster.planning.shapes import ModelShape, model_shape, read_shape
from perm_ray.config.engines import BUILTIN_MODEL, EngineConfig
from perm_ray.errors import ConfigError, ModelError
from perm_ray.models.resolve import cache_dir

# Billions of parameters on the model cards: all, and without embeddings where the card tells.
CARDS = {
    BUILTIN_MODEL: (0.1345, None),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (0.1345, None),
    "Qwen/Qwen2.5-0.5B-Instruct": (0.49, 0.36),
    "Qwen/Qwen2.5-1.5B-Instruct": (1.54, 1.31),
    "Qwen/Qwen2.5-3B-Instruct": (3.09, 2.77),
    "Qwen/Qwen2.5-7B-Instruct": (7.61, 6.53),
    "Qwen/Qwen2.5-14B-Instruct": (14.7, 13.1),
    "Qwen/Qwen2.5-32B-Instruct": (32.5, 31.0),
    "Qwen/Qwen2.5-72B-Instruct": (72.7, 70.0),
    "Qwen/Qwen3-0.6B": (0.6, 0.44),
    "Qwen/Qwen3-4B": (4.0, 3.6),
    "Qwen/Qwen3-8B": (8.2, 6.95),
    "Qwen/Qwen3-14B": (14.8, 13.2),
    "Qwen/Qwen3-32B": (32.8, 31.2),
    "meta-llama/Llama-3.2-1B-Instruct": (1.23, None),
    "meta-llama/Llama-3.2-3B-Instruct": (3.21, None),
    "meta-llama/Llama-3.1-8B-Instruct": (8.03, None),
    "meta-llama/Llama-3.1-70B-Instruct": (70.6, None),
}
QWEN_7B = model_shape("Qwen/Qwen2.5-7B-Instruct")
# 2 layers, 8 wide, 4 heads of 2 with 2 key-value heads, an MLP of 16, 100 words.
SMALL = ModelShape(2, 8, 16, 4, 2, 2, 100)
GPU_ENGINE = EngineConfig(num_gpus=1)


# ---- shapes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CARDS)
def test_parameters_are_those_of_the_models_card_to_one_percent(name: str) -> None:
    shape, (total, without) = model_shape(name), CARDS[name]
    assert shape.parameters / 1e9 == pytest.approx(total, rel=0.01)
    if without is not None:
        embeddings = shape.embedding_parameters * (1 if shape.tied else 2)
        assert (shape.parameters - embeddings) / 1e9 == pytest.approx(without, rel=0.011)


def test_a_small_models_parameters_by_hand() -> None:
    # q 8x8, k and v 8x4 each, o 8x8, three of 8x16, two norms of 8; twice; embedding, head, last norm.
    layer = 64 + 32 + 32 + 64 + 3 * 128 + 16
    assert SMALL.layer_parameters == layer == 592
    assert SMALL.parameters == 2 * layer + 2 * 800 + 8
    assert replace(SMALL, tied=True).parameters == 2 * layer + 800 + 8
    assert replace(SMALL, qkv_bias=True, qk_norm=True).layer_parameters == layer + 16 + 4
    assert SMALL.adapter_parameters(3, ("q_proj", "down_proj")) == 2 * 3 * ((8 + 8) + (16 + 8))
    assert SMALL.adapter_parameters(0, ("q_proj",)) == 0
    with pytest.raises(ModelError, match=r"among q_proj.*found out_proj"):
        SMALL.adapter_parameters(1, ("out_proj",))


def described(folder: Path, **values: object) -> Path:
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "intermediate_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return folder


def test_a_folder_tells_its_shape(tmp_path: Path) -> None:
    folder = described(tmp_path / "model")
    assert model_shape(str(folder)) == SMALL
    described(folder, head_dim=16, tie_word_embeddings=True, attention_bias=True)
    assert model_shape(str(folder)) == replace(SMALL, head_dim=16, tied=True, qkv_bias=True)
    described(folder, model_type="qwen2")
    assert model_shape(str(folder)) == replace(SMALL, qkv_bias=True)
    described(folder, model_type="qwen3", num_key_value_heads=None)
    assert model_shape(str(folder)) == replace(SMALL, qk_norm=True, kv_heads=4)


def test_the_built_in_models_shape_is_what_its_folder_tells() -> None:
    file = cache_dir() / "models" / BUILTIN_MODEL.removeprefix("builtin:") / "config.json"
    if not file.is_file():
        pytest.skip("the built-in model has not been converted on this machine yet")
    assert read_shape(file) == model_shape(BUILTIN_MODEL)


def test_a_shape_that_cannot_be_known_is_refused(tmp_path: Path) -> None:
    for name in ("no-such-org/no-such-model", "./nowhere", "builtin:gpt9"):
        with pytest.raises(ModelError, match=r"is not known.*give the folder"):
            model_shape(name)
    with pytest.raises(ModelError, match=r"did you mean Qwen/Qwen2\.5-7B-Instruct"):
        model_shape("Qwen/Qwen2.5-7B-Instuct")
    with pytest.raises(ModelError, match="mixture of experts"):
        model_shape(str(described(tmp_path / "mixed", num_experts=8)))
    folder = tmp_path / "broken"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        model_shape(str(folder))
    for text, said in (("[]", "must be a JSON object"), ("{}", "must have the key 'num_attention_heads'")):
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelError, match=said):
            model_shape(str(folder))


# ---- engines ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_gpus": 2}, r"num_gpus must be e\.tensor_parallel_size.*found 2 and 1"),
        ({"num_gpus": 1.5}, r"found 1\.5 and 1"),
        ({"num_gpus": 0.5}, r"gpu_memory_utilization must be at most 0\.5.*found 0\.85: set it to 0\.45"),
        (
            {"num_gpus": 0.5, "gpu_memory_utilization": 0.4, "tensor_parallel_size": 2},
            "must be 1 on a share",
        ),
        (
            {"num_gpus": 3, "tensor_parallel_size": 3},
            r"must divide heads of the model, 28, found 3.*set it to 2",
        ),
        ({"num_gpus": 14, "tensor_parallel_size": 14}, "at most the 8 GPUs of a node, found 14"),
        ({"num_gpus": 7, "tensor_parallel_size": 7}, r"divide the MLP's width of the model, 18944, found 7"),
        ({"gpu_memory_utilization": 1.5}, r"at most 1,.*found 1\.5"),
    ],
)
def test_an_engine_that_no_gpus_can_hold_is_refused(changes: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_engine("e", replace(GPU_ENGINE, **changes), QWEN_7B, 8)


def test_an_engine_that_fits_the_model_is_not_refused() -> None:
    for parallel in (1, 2, 4):
        check_engine("e", replace(GPU_ENGINE, num_gpus=parallel, tensor_parallel_size=parallel), QWEN_7B, 8)
    check_engine("e", EngineConfig(), QWEN_7B, 8)
    odd = replace(QWEN_7B, heads=24, kv_heads=6, intermediate=24)
    with pytest.raises(ConfigError, match="6 key-value heads"):
        check_engine("e", replace(GPU_ENGINE, num_gpus=4, tensor_parallel_size=4), odd, 8)
