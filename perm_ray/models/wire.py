"""The protocol of a weight transfer over gloo: the group both halves meet in, and how weights travel.

Weights go as packed bytes, in chunks that sender and receiver cut by one rule; both take the checksum of what
passes. The halves are `sender.py` and `transfer.py`.
"""

from __future__ import annotations

import datetime
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer.base import ParamMeta

from perm_ray.cluster.rendezvous import join_store, open_store, use_interface_towards


class BroadcastGroup:
    """A stand-alone gloo group that leaves torch.distributed's default group to DeepSpeed.

    Rank 0 opens the store (`port` 0) and tells the others its port."""

    def __init__(self, host: str, port: int, rank: int, world_size: int, timeout_s: float) -> None:
        self._rank, self._world_size = rank, world_size
        self._timeout = datetime.timedelta(seconds=timeout_s)
        use_interface_towards(host)
        self._store = (
            open_store(host, world_size, timeout_s)
            if rank == 0
            else join_store(host, port, world_size, timeout_s)
        )
        self.port = self._store.port

    def join(self) -> None:
        """Wait until every rank is here."""
        self._group: Any = dist.ProcessGroupGloo(
            self._store, self._rank, self._world_size, timeout=self._timeout
        )

    def broadcast(self, buffer: torch.Tensor) -> None:
        """Send (rank 0) or receive `buffer` in place."""
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self._group.broadcast([buffer], options).wait()


def num_bytes(meta: ParamMeta) -> int:
    """Return the size of one tensor on the wire, in bytes."""
    return torch.Size(meta.shape).numel() * meta.dtype.itemsize


def chunks(metas: Sequence[ParamMeta], limit: int) -> Iterator[tuple[list[ParamMeta], int]]:
    """Cut `metas`, in order, into chunks that just reach `limit` bytes: `(metas, bytes)` of each."""
    chunk: list[ParamMeta] = []
    size = 0
    for meta in metas:
        chunk.append(meta)
        size += num_bytes(meta)
        if size >= limit:
            yield chunk, size
            chunk, size = [], 0
    if chunk:
        yield chunk, size


def unpack(buffer: torch.Tensor, metas: Iterable[ParamMeta]) -> Iterator[tuple[str, torch.Tensor]]:
    offset = 0
    for meta in metas:
        size = num_bytes(meta)
        yield meta.name, buffer[offset : offset + size].view(meta.dtype).view(meta.shape)
        offset += size


def crc32(buffer: torch.Tensor, start: int) -> int:
    """Return the checksum of what `start` is the checksum of, with `buffer` after it."""
    data: Any = buffer.numpy()  # a buffer, which its annotations do not say
    return zlib.crc32(data, start)
