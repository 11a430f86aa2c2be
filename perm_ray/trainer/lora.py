"""LoRA by peft: the policy's weights stay as they are, and a low-rank adapter beside them is trained.

`learner.py` adds the adapter; `weights.py` reads it, merged or alone; `reference.py` turns it off, which
makes the policy its own reference. The adapter is injected, not wrapped around the model: names stay those
of the checkpoint but for peft's own parts, which `checkpoint_name` takes out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from perm_ray.config.training import LoraConfig
from perm_ray.errors import ModelError

_NAME = "default"  # peft's, of the one adapter there is


@dataclass(frozen=True, slots=True)
class Adapter:
    """The low-rank update of one weight: `scaling * up @ down`."""

    down: nn.Parameter
    up: nn.Parameter
    scaling: float


def peft_config(config: LoraConfig, base: Path | None = None) -> peft.LoraConfig:
    """peft's form of our section; `base` is the folder of the model that the adapter belongs to."""
    return peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]  a fraction is as good
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=None if base is None else str(base),
    )


def add_adapter(model: PreTrainedModel, config: LoraConfig, rank: int) -> None:
    """Freeze the model and give each target an adapter that at first adds nothing; the same on all ranks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() - rank)  # ranks are seeded with the run's seed + rank
        try:
            peft.inject_adapter_in_model(peft_config(config), model)
        except ValueError as error:
            raise ModelError(
                f"trainer.lora.targets must name linear layers of the policy, found {list(config.targets)}: "
                f"{error}"
            ) from error
    head = model.get_output_embeddings()
    for name, layer in _layers(model):
        if layer is head or not isinstance(layer.get_base_layer(), nn.Linear):
            raise ModelError(
                f"trainer.lora.targets must name linear layers other than the head, and {name} is "
                f"{'the head' if layer is head else type(layer.get_base_layer()).__name__}: leave it out."
            )


def adapters(module: nn.Module) -> dict[str, Adapter]:
    """Return the adapters of a model by the name, as checkpoints have it, of the weight each adds to."""
    return {
        f"{name}.weight": Adapter(
            down=layer.lora_A[_NAME].weight, up=layer.lora_B[_NAME].weight, scaling=layer.scaling[_NAME]
        )
        for name, layer in _layers(module)
    }


def checkpoint_name(name: str) -> str:
    """Return the name of a base model's parameter or buffer as the model without an adapter has it."""
    return name.replace(".base_layer.", ".")


@contextmanager
def without_adapter(module: nn.Module) -> Iterator[None]:
    """Give the base model, for as long as the block lasts."""
    layers = [layer for _, layer in _layers(module)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _layers(module: nn.Module) -> list[tuple[str, Any]]:  # peft's annotations do not say what is in them
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, LoraLayer)]
