"""The receiving half of a weight transfer over gloo, as a vLLM backend named `gloo`: whole weights, or a LoRA
adapter alone.

vLLM's own backends need an accelerator; this one has the shape of its `nccl` backend. vLLM workers import
this module because `worker_extension_cls` names it, and importing it registers the backend. `sender.py` has
the trainer's half.

Both sides take a checksum of what goes over the wire; weight sync compares them. An adapter that comes
alone is merged into the weights of the engine's own model folder, by the trainer's rule (`adapter.merge`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from perm_ray.errors import ModelError
from perm_ray.models.adapter import DOWN, UP, merge
from perm_ray.models.wire import BroadcastGroup, chunks, crc32, unpack

BACKEND = "gloo"


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    chunk_bytes: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    names: list[str] = field(default_factory=list)
    dtype_names: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    adapter_scaling: float | None = None  # the weights are a LoRA adapter's

    def metas(self) -> list[ParamMeta]:
        rows = zip(self.names, self.dtype_names, self.shapes, strict=True)
        return [ParamMeta(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in rows]


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Receives weights in checkpoint format and loads them layer by layer."""

    init_info_cls, update_info_cls = GlooInitInfo, GlooUpdateInfo
    checksum = 0  # of the last update, over all that came

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self._chunk_bytes = init_info.chunk_bytes
        self._group = BroadcastGroup(
            init_info.master_address, init_info.master_port, rank, init_info.world_size, init_info.timeout_s
        )
        self._group.join()

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self.checksum = 0
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        model: Any = self.model  # every vLLM model has load_weights; nn.Module does not say so
        adapter: dict[str, torch.Tensor] = {}
        for metas, size in chunks(update_info.metas(), self._chunk_bytes):
            # A fresh buffer per chunk: the loader keeps views until a layer is complete.
            buffer = torch.empty(size, dtype=torch.uint8)
            self._group.broadcast(buffer)
            self.checksum = crc32(buffer, self.checksum)
            if update_info.adapter_scaling is None:
                model.load_weights(unpack(buffer, metas))
            else:
                adapter.update(unpack(buffer, metas))
        if update_info.adapter_scaling is not None:
            folder = Path(self.model_config.model)
            model.load_weights(_with_adapter(folder, adapter, update_info.adapter_scaling))

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied_heads(self.model)

    def shutdown(self) -> None:
        del self._group


def _with_adapter(
    folder: Path, adapter: dict[str, torch.Tensor], scaling: float
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights in `folder`, the adapter merged in."""
    dtype = next(iter(adapter.values())).dtype  # the trainer's: it merges in the same
    left = {name.removesuffix(DOWN) for name in adapter if name.endswith(DOWN)}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  safe_open is no mapping
                weight = weights.get_tensor(name).to(dtype)
                if name in left:
                    left.remove(name)
                    weight = merge(weight, adapter[name + DOWN], adapter[name + UP], scaling)
                yield name, weight
    if left:
        raise ModelError(f"{folder} lacks {sorted(left)[0]}, which the trainer sent an adapter for.")


def _repack_tied_heads(model: torch.nn.Module) -> None:
    """Rebuild the packed copy of a tied lm_head, which vLLM 0.32's reload leaves stale on CPU.

    Without this every log-probability is off by 0.19 on average, silently."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        UnquantizedEmbeddingMethod,
    )

    for module in model.modules():
        plain_head = isinstance(module, ParallelLMHead) and isinstance(
            module.quant_method, UnquantizedEmbeddingMethod
        )
        if plain_head and module.weight.device.type == "cpu":
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


class WorkerExtension:
    """Methods that vLLM's workers get beside their own; naming it makes them import this module."""

    weight_transfer_engine: Any

    def weight_checksum(self) -> int | None:
        """Return the checksum of the last update as it arrived; None where vLLM's own backend received it."""
        return getattr(self.weight_transfer_engine, "checksum", None)


# Importing twice under two names must not fail: vLLM's registry refuses a second registration.
if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, GlooWeightTransferEngine)
