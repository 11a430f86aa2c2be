"""The policy's full weights, or its adapter's, out of the engine: for weight sync and for export.

Under ZeRO-3 each rank holds a slice of every parameter, so reading them is a collective: all ranks
iterate, in the same order, even those that throw the tensors away.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deepspeed
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig

from perm_ray.config.training import LoraConfig
from perm_ray.models.adapter import DOWN, UP, merge
from perm_ray.trainer.lora import Adapter, adapters, checkpoint_name, peft_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BUCKET_BYTES = 64 << 20  # gathering parameter by parameter is three to six times slower
COPIED_FILES = (
    "generation_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


def gathered(parameters: Sequence[nn.Parameter]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield each parameter and its full value, on every rank; good only until the next one is asked for."""
    for bucket in _buckets([(parameter,) for parameter in parameters]):
        with _whole(bucket):
            for (parameter,) in bucket:
                yield parameter, parameter.detach()


class PolicyWeights:
    """Iterates over (name, full tensor), in the model's dtype; a tied weight comes once.

    A LoRA adapter is merged into its weight on the way, and the training copy left as it is. `average` has
    values to be used in the stead of parameters (`ema.py`). A tensor is only good until the next one is
    asked for: copy what you keep. Under ZeRO-3 it is freed then, otherwise it may be the live parameter.
    """

    def __init__(self, module: nn.Module, average: Mapping[nn.Parameter, Tensor] | None = None) -> None:
        found = adapters(module)
        parts = {part for adapter in found.values() for part in (adapter.down, adapter.up)}
        base = [(checkpoint_name(name), p) for name, p in module.named_parameters() if p not in parts]
        self._entries = [(name, parameter, found.get(name)) for name, parameter in base]
        self._average = average or {}

    def metadata(self) -> list[tuple[str, torch.dtype, torch.Size]]:
        """Name, dtype and full shape of each weight, in the order of iteration. No collective."""
        return [(name, p.dtype, _shape(p)) for name, p, _ in self._entries]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        groups = [(p,) if a is None else (p, a.down, a.up) for _, p, a in self._entries]
        entries = iter(self._entries)
        for bucket in _buckets(groups):
            with _whole(bucket):
                for _ in bucket:
                    name, parameter, adapter = next(entries)
                    yield name, self._value(parameter, adapter)

    def _value(self, parameter: nn.Parameter, adapter: Adapter | None) -> Tensor:
        weight = self._average.get(parameter, parameter.detach()).to(parameter.dtype)
        if adapter is None:
            return weight
        down, up = (self._average.get(part, part.detach()) for part in (adapter.down, adapter.up))
        return merge(weight, down, up, adapter.scaling)


class AdapterWeights:
    """Iterates over (name, full tensor) of a LoRA adapter alone: of each weight's name, `DOWN` and `UP`."""

    def __init__(self, module: nn.Module, average: Mapping[nn.Parameter, Tensor] | None = None) -> None:
        found = adapters(module)
        self.scaling = next(iter(found.values())).scaling
        self._entries = [
            (name + suffix, part)
            for name, adapter in found.items()
            for suffix, part in ((DOWN, adapter.down), (UP, adapter.up))
        ]
        self._average = average or {}

    def metadata(self) -> list[tuple[str, torch.dtype, torch.Size]]:
        """Return names and shapes, as `PolicyWeights.metadata` does."""
        return [(name, p.dtype, _shape(p)) for name, p in self._entries]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        values = gathered([parameter for _, parameter in self._entries])
        for (name, _), (parameter, value) in zip(self._entries, values, strict=True):
            yield name, self._average.get(parameter, value).to(parameter.dtype)


def _shape(parameter: nn.Parameter) -> torch.Size:
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _whole(bucket: Sequence[tuple[nn.Parameter, ...]]) -> Any:
    """Within it the bucket's parameters are whole on every rank."""
    parameters = [parameter for group in bucket for parameter in group]
    partitioned = any(hasattr(parameter, "ds_id") for parameter in parameters)
    return deepspeed.zero.GatheredParameters(parameters, enabled=partitioned)


def _buckets(groups: Sequence[tuple[nn.Parameter, ...]]) -> Iterator[list[tuple[nn.Parameter, ...]]]:
    """Yield groups of parameters that are needed together, in order, some `BUCKET_BYTES` at a time."""
    bucket: list[tuple[nn.Parameter, ...]] = []
    size = 0
    for group in groups:
        bucket.append(group)
        size += sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in group)
        if size >= BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def export_model(
    model: PreTrainedModel, weights: PolicyWeights, source_dir: Path, path: Path, rank: int
) -> None:
    """Write `path` as a folder that transformers and vLLM load; the tokenizer comes from `source_dir`.

    Every rank calls it; rank 0 writes, aside first, so that `path` is never half a model. (DeepSpeed's
    own exporters skip ZeRO-3 or fail on tied embeddings.)
    """
    state = _kept(weights, rank)
    if rank != 0:
        return
    persistent = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    state |= {checkpoint_name(name): buffer.cpu() for name, buffer in buffers.items()}
    with _aside(path) as aside:
        # transformers refuses to save generation defaults that contradict each other (a temperature without
        # sampling), after all the training; the source's own file is kept as it is.
        if (source_dir / "generation_config.json").exists():
            model.generation_config = GenerationConfig()
        model.save_pretrained(aside, state_dict=state)
        for name in COPIED_FILES:
            if (source_dir / name).exists():
                shutil.copy(source_dir / name, aside / name)


def export_adapter(
    weights: AdapterWeights, config: LoraConfig, source_dir: Path, path: Path, rank: int
) -> None:
    """Write `path` as a folder that peft and vLLM load as an adapter of the model in `source_dir`."""
    state = _kept(weights, rank)
    if rank != 0:
        return
    renamed = {}
    for name, tensor in state.items():
        weight, _, part = name.rpartition(".")
        renamed[f"base_model.model.{weight.removesuffix('.weight')}.{part}.weight"] = tensor.contiguous()
    with _aside(path) as aside:
        peft_config(config, source_dir).save_pretrained(str(aside))
        save_file(renamed, aside / "adapter_model.safetensors", metadata={"format": "pt"})


def _kept(weights: Iterable[tuple[str, Tensor]], rank: int) -> dict[str, Tensor]:
    """Copies of all weights on rank 0; the others only take part."""
    state: dict[str, Tensor] = {}
    for name, tensor in weights:
        if rank == 0:
            state[name] = tensor.cpu().clone()
    return state


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Give a folder to write to, which then takes the place of `path`."""
    aside = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    shutil.rmtree(path, ignore_errors=True)
    os.rename(aside, path)
