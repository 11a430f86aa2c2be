"""The policy's full weights, out of the engine: for weight sync and for export.

Under ZeRO-3 each rank holds a slice of every parameter, so reading them is a collective: all ranks
iterate, in the same order, even those that throw the tensors away.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import deepspeed
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BUCKET_BYTES = 64 << 20  # gathering parameter by parameter is three to six times slower
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


class PolicyWeights:
    """Iterates over (name, full tensor), in the model's dtype; a tied weight comes once.

    A tensor is only good until the next one is asked for: copy what you keep. Under ZeRO-3 it is
    freed then, otherwise it is the live parameter.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parameters = list(module.named_parameters())
        self._partitioned = any(hasattr(parameter, "ds_id") for _, parameter in self._parameters)

    def metadata(self) -> list[tuple[str, torch.dtype, torch.Size]]:
        """Name, dtype and full shape of each weight, in the order of iteration. No collective."""
        return [(name, p.dtype, torch.Size(getattr(p, "ds_shape", p.shape))) for name, p in self._parameters]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for bucket in self._buckets():
            parameters = [parameter for _, parameter in bucket]
            with deepspeed.zero.GatheredParameters(parameters, enabled=self._partitioned):
                for name, parameter in bucket:
                    yield name, parameter.detach()

    def _buckets(self) -> Iterator[list[tuple[str, nn.Parameter]]]:
        bucket: list[tuple[str, nn.Parameter]] = []
        size = 0
        for name, parameter in self._parameters:
            bucket.append((name, parameter))
            size += getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
            if size >= BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket


def export_model(model: PreTrainedModel, source_dir: Path, path: Path, rank: int) -> None:
    """Write `path` as a folder that transformers and vLLM load; the tokenizer comes from `source_dir`.

    Every rank calls it; rank 0 writes, aside first, so that `path` is never half a model. (DeepSpeed's
    own exporters skip ZeRO-3 or fail on tied embeddings.)
    """
    state: dict[str, Tensor] = {}
    for name, tensor in PolicyWeights(model):
        if rank == 0:
            state[name] = tensor.cpu().clone()
    if rank != 0:
        return
    persistent = model.state_dict().keys()
    state |= {name: buffer.cpu() for name, buffer in model.named_buffers() if name in persistent}
    aside = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside, state_dict=state)
    for name in TOKENIZER_FILES:
        if (source_dir / name).exists():
            shutil.copy(source_dir / name, aside / name)
    shutil.rmtree(path, ignore_errors=True)
    os.rename(aside, path)
