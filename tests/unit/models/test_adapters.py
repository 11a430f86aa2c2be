"""Adapters are merged into a copy of their model, once; the shipped ones fit the built-in model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from perm_ray.errors import ModelError
from perm_ray.models.resolve import BUILTIN_ADAPTERS, resolve_model

WEIGHT = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERM_RAY_CACHE", str(tmp_path / "cache"))
    weight = load_file(tiny_model / "model.safetensors")[f"{WEIGHT}.weight"]
    torch.manual_seed(0)
    parts = {
        f"base_model.model.{WEIGHT}.lora_A.weight": torch.randn(2, weight.shape[1]),
        f"base_model.model.{WEIGHT}.lora_B.weight": torch.randn(weight.shape[0], 2),
    }
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(parts, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
    return folder


def test_an_adapter_is_added_to_its_weight_alone(tiny_model: Path, adapter: Path) -> None:
    merged = resolve_model(str(tiny_model), str(adapter))
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, merged))
    down, up = load_file(adapter / "adapter_model.safetensors").values()
    changed = f"{WEIGHT}.weight"
    expected = (before[changed].float() + 2 * (up @ down)).to(before[changed].dtype)
    assert torch.equal(after.pop(changed), expected)
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert resolve_model(str(tiny_model), str(adapter)) == merged, "it is made once"


def test_an_adapter_of_another_model_is_refused(tiny_model: Path, adapter: Path) -> None:
    parts = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("layers.0", "layers.77"): tensor for name, tensor in parts.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="give an adapter of this very model"):
        resolve_model(str(tiny_model), str(adapter))


def test_a_folder_without_an_adapter_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not the folder of a LoRA adapter: adapter_model\.safetensors"):
        resolve_model(str(tiny_model), str(tmp_path))


@pytest.mark.parametrize("name", BUILTIN_ADAPTERS)
def test_a_shipped_adapter_has_a_card_with_its_command_and_figures(name: str) -> None:
    folder = BUILTIN_ADAPTERS[name]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "    perm-ray " in card
    assert "Held-out" in card
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "builtin:smollm2-135m-instruct"
    assert (folder / "adapter_model.safetensors").stat().st_size < 6_000_000
