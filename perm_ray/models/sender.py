"""Weights out of a trainer rank into every rollout engine: the sending half of weight sync.

Rank 0 and all engines join one transfer group: gloo, or vLLM's NCCL backend between GPUs. All trainer ranks
read the weights together (sharded ones are gathered); rank 0 sends them and tells the engines, by remote
calls, when an update begins and ends. `transfer.py` has the engine's half.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Protocol

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerWeightTransferEngine, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from perm_ray.cluster.calls import wait_all
from perm_ray.cluster.rendezvous import free_port
from perm_ray.config.engines import EngineConfig
from perm_ray.config.training import SyncConfig
from perm_ray.models.transfer import GlooInitInfo, GlooUpdateInfo
from perm_ray.models.wire import BroadcastGroup, chunks, crc32, num_bytes, unpack


class Weights(Protocol):
    """Named full tensors of a trainer rank, in a fixed order; iterating is a collective of all ranks."""

    def metadata(self) -> list[tuple[str, torch.dtype, torch.Size]]: ...

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]: ...


class WeightSender:
    """One trainer rank's end of the transfer; every rank makes the same calls.

    Args:
        rank: The trainer rank; 0 sends.
        address: The address of its node.
        weights: Read anew for every update.
        engines: Handles of all rollout engines.
        engine: Their configuration.
        sync: The section `sync`, its backend chosen (`Config.transfer_backend`).
    """

    def __init__(
        self,
        rank: int,
        address: str,
        weights: Weights,
        engines: Sequence[Any],
        engine: EngineConfig,
        sync: SyncConfig,
    ) -> None:
        self._source = _Source(weights)
        self._client = _EngineClient(engines, engine.tensor_parallel_size, sync.timeout_s)
        world_size = 1 + len(engines) * engine.tensor_parallel_size
        self._sender: GlooSender | TrainerWeightTransferEngine
        if sync.backend == "nccl":
            port = free_port(address) if rank == 0 else 0
            info = NCCLTrainerInitInfo(address, port, world_size, rank=rank)
            self._sender = WeightTransferTrainerFactory.trainer_init(
                info, client=self._client, source=self._source
            )
        else:
            scaling = getattr(weights, "scaling", None)
            self._sender = GlooSender(rank, self._client, self._source, scaling)
            if rank == 0:
                self._sender.connect(address, world_size, sync.chunk_mb << 20, sync.timeout_s)

    def send(self, version: int) -> tuple[int, int | None]:
        """Send this rank's part of `version`; returns the bytes of all weights, and the checksum of what was
        sent, which vLLM's NCCL backend does not take."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # vLLM packs on streams that do not wait for the optimizer's update
        self._client.version = version
        self._sender.send_weights()
        size = sum(map(num_bytes, self._source.metadata()))
        return size, getattr(self._sender, "checksum", None)


class GlooSender:
    """The counterpart of `GlooWeightTransferEngine`, with the method of vLLM's trainer-side backends."""

    checksum = 0  # of the last update, over all that was sent
    _group: BroadcastGroup
    _chunk_bytes: int

    def __init__(self, rank: int, client: _EngineClient, source: _Source, scaling: float | None) -> None:
        self._rank = rank
        self._client = client
        self._source = source
        self._scaling = scaling

    def connect(self, address: str, world_size: int, chunk_bytes: int, timeout_s: float) -> None:
        """Open the group on rank 0 and wait until every engine has joined it."""
        self._chunk_bytes = chunk_bytes
        self._group = BroadcastGroup(address, 0, 0, world_size, timeout_s)
        info = GlooInitInfo(
            master_address=address,
            master_port=self._group.port,
            rank_offset=1,
            world_size=world_size,
            chunk_bytes=chunk_bytes,
            timeout_s=timeout_s,
        )
        with ThreadPoolExecutor(1) as pool:  # the engines join while this rank does
            joined = pool.submit(self._client.init_weight_transfer_engine, asdict(info))
            try:
                self._group.join()
            finally:
                joined.result()  # an engine's own error says more than a rendezvous that nobody came to

    def send_weights(self) -> None:
        if self._rank != 0:
            for _ in self._source:  # take part in gathering sharded weights
                pass
            return
        metas = self._source.metadata()
        update = GlooUpdateInfo(
            names=[meta.name for meta in metas],
            dtype_names=[str(meta.dtype).removeprefix("torch.") for meta in metas],
            shapes=[list(meta.shape) for meta in metas],
            adapter_scaling=self._scaling,
        )
        self.checksum = 0
        self._client.start_weight_update()
        pool = ThreadPoolExecutor(1)
        try:
            received = pool.submit(self._client.update_weights, asdict(update))
            self._broadcast(metas)
            received.result()
        finally:
            pool.shutdown(wait=False)  # after a failed broadcast the receivers may never answer
        self._client.finish_weight_update()

    def _broadcast(self, metas: Sequence[ParamMeta]) -> None:
        weights = iter(self._source)
        for chunk, size in chunks(metas, self._chunk_bytes):
            buffer = torch.empty(size, dtype=torch.uint8)
            for target, meta in zip(unpack(buffer, chunk), chunk, strict=True):
                name, tensor = next(weights)
                assert name == meta.name, f"expected the weights of {meta.name}, found {name}"
                target[1].copy_(tensor)
            self.checksum = crc32(buffer, self.checksum)
            self._group.broadcast(buffer)


class _Source(WeightSource):
    """A rank's weights as vLLM's backends read them."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, dtype, tuple(shape)) for name, dtype, shape in self._weights.metadata()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self._weights)


class _EngineClient:
    """vLLM's `VLLMWeightSyncClient` over several independent engines: each gets ranks of its own."""

    def __init__(self, engines: Sequence[Any], ranks_per_engine: int, timeout_s: float) -> None:
        self._engines = engines
        self._ranks_per_engine = ranks_per_engine
        self._timeout_s = timeout_s
        self.version = 0

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        calls = [
            engine.init_weight_transfer_engine.remote(
                {**init_info, "rank_offset": 1 + index * self._ranks_per_engine}
            )
            for index, engine in enumerate(self._engines)
        ]
        self._wait(calls, "joining the weight transfer")

    def start_weight_update(self) -> None:
        self._wait([e.start_weight_update.remote() for e in self._engines], "preparing for weights")

    def update_weights(self, update_info: Any) -> None:
        self._wait([e.update_weights.remote(update_info) for e in self._engines], "receiving weights")

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        del weight_version  # the senders do not pass one
        calls = [e.finish_weight_update.remote(self.version) for e in self._engines]
        self._wait(calls, f"taking over version {self.version}")

    def _wait(self, calls: Sequence[Any], doing: str) -> None:
        named = {f"rollout engine {index}": call for index, call in enumerate(calls)}
        wait_all(named, timeout_s=self._timeout_s, doing=doing)
