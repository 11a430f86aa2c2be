"""Trainer to every rollout engine, by version. The only file that knows both sides.

Weights go from trainer rank 0 straight to the engines (gloo on CPU, NCCL on GPU), never through the
driver. The driver calls `push(version)` between two steps, when nothing is being sampled; it returns
when every engine holds that version, received as it was sent, and has dropped its prefix cache, and raises
otherwise. A LoRA adapter is merged on the way, or (`sync.adapter_only`) sent alone and merged by the engines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perm_ray.cluster.calls import wait_all
from perm_ray.config.training import SyncConfig
from perm_ray.errors import RunError

if TYPE_CHECKING:
    import torch

    from perm_ray.rollout.pool import RolloutPool
    from perm_ray.trainer.actor import TrainerRank
    from perm_ray.trainer.group import TrainerGroup


@dataclass(frozen=True, slots=True)
class SyncStats:
    """One push: the version now in every engine, how long it took, and the weights' size."""

    version: int
    seconds: float
    num_bytes: int

    def metrics(self) -> dict[str, float]:
        return {
            "sync/version": float(self.version),
            "sync/seconds": self.seconds,
            "sync/bytes": float(self.num_bytes),
        }


@dataclass(frozen=True, slots=True)
class Sent:
    """What trainer rank 0 sent: its size, and its checksum, which vLLM's own backends (NCCL) do not take."""

    num_bytes: int
    checksum: int | None


def check_delivery(
    sent: Sent, version: int, versions: Sequence[int], checksums: Sequence[int | None]
) -> None:
    """Raise `RunError` naming each engine that does not hold `version`, or got other bytes than were sent."""
    wrong = [
        f"engine {index} holds version {held}" if held != version else f"engine {index} got other weights"
        for index, (held, found) in enumerate(zip(versions, checksums, strict=True))
        if held != version or found != sent.checksum
    ]
    if wrong:
        raise RunError(
            f"Version {version} did not reach every rollout engine as it was sent: {', '.join(wrong)}. "
            "Resume from the last checkpoint, and look at the network if it happens again."
        )


class WeightSync:
    """The driver's side. `connect` once both sides are up, then `push` after every training step."""

    def __init__(self, trainer: TrainerGroup, rollouts: RolloutPool, config: SyncConfig) -> None:
        self._trainer = trainer
        self._rollouts = rollouts
        self._config = config
        self._version: int | None = None
        rollouts.on_replaced = self._restore

    def connect(self) -> None:
        """Have trainer rank 0 and all engines join one transfer group."""
        engine = self._rollouts.engine_config
        link = _Link(
            engines=tuple(self._rollouts.actors),
            ranks_per_engine=engine.tensor_parallel_size,
            on_gpu=engine.num_gpus > 0,
            chunk_bytes=self._config.chunk_mb << 20,
            adapter_only=self._config.adapter_only,
            timeout_s=self._config.timeout_s,
        )
        self._trainer.apply(_connect, link, timeout_s=self._patience_s, doing="connecting to the engines")

    def push(self, version: int) -> SyncStats:
        """Send the trainer's weights to every engine as `version`."""
        start = time.monotonic()
        if self._rollouts.replace_dead(self._config.timeout_s):
            self.connect()
        doing = f"sending weights, version {version}"
        sent, *_ = self._trainer.apply(_send, version, timeout_s=self._patience_s, doing=doing)
        held = self._rollouts.weight_versions(self._config.timeout_s)
        check_delivery(sent, version, held, self._rollouts.weight_checksums(self._config.timeout_s))
        self._version = version
        return SyncStats(version, time.monotonic() - start, sent.num_bytes)

    @property
    def _patience_s(self) -> float:
        """Longer than all the waits inside together, so that the one that ran out tells its own story."""
        return 5 * self._config.timeout_s

    def _restore(self) -> None:
        """A rollout engine was replaced: it knows neither the group nor the weights."""
        self.connect()
        if self._version is not None:
            self.push(self._version)


# --- what runs in a trainer rank's process -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Link:
    engines: tuple[Any, ...]
    ranks_per_engine: int
    on_gpu: bool
    chunk_bytes: int
    adapter_only: bool
    timeout_s: float


class _EngineClient:
    """vLLM's `VLLMWeightSyncClient` over several independent engines: each gets ranks of its own."""

    def __init__(self, link: _Link) -> None:
        self._link = link
        self.version = 0

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        offsets = [1 + i * self._link.ranks_per_engine for i in range(len(self._link.engines))]
        infos = [{**init_info, "rank_offset": offset} for offset in offsets]
        calls = [
            engine.init_weight_transfer_engine.remote(info)
            for engine, info in zip(self._link.engines, infos, strict=True)
        ]
        self._wait(calls, "joining the weight transfer")

    def start_weight_update(self) -> None:
        self._wait([e.start_weight_update.remote() for e in self._link.engines], "preparing for weights")

    def update_weights(self, update_info: Any) -> None:
        self._wait([e.update_weights.remote(update_info) for e in self._link.engines], "receiving weights")

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        del weight_version  # the built-in senders do not pass one
        calls = [e.finish_weight_update.remote(self.version) for e in self._link.engines]
        self._wait(calls, f"taking over version {self.version}")

    def _wait(self, calls: Sequence[Any], doing: str) -> None:
        named = {f"rollout engine {i}": call for i, call in enumerate(calls)}
        wait_all(named, timeout_s=self._link.timeout_s, doing=doing)


def _connect(rank: TrainerRank, link: _Link) -> None:
    import ray

    from perm_ray.models.transfer import open_sender

    client = _EngineClient(link)
    sender = open_sender(
        rank=rank.rank,
        address=ray.util.get_node_ip_address(),
        world_size=1 + len(link.engines) * link.ranks_per_engine,
        chunk_bytes=link.chunk_bytes,
        timeout_s=link.timeout_s,
        client=client,
        source=_weight_source(rank, link.adapter_only),
        on_gpu=link.on_gpu,
    )
    rank.weight_sender = (client, sender)


def _weight_source(rank: TrainerRank, adapter_only: bool) -> Any:
    """The rank's weights, or its adapter's, as vLLM's `WeightSource`."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    weights = rank.adapter_source() if adapter_only else rank.weight_source()

    class PolicySource(WeightSource):
        adapter_scaling = getattr(weights, "scaling", None)

        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(name, dtype, tuple(shape)) for name, dtype, shape in weights.metadata()]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            return iter(weights)

    return PolicySource()


def _send(rank: TrainerRank, version: int) -> Sent:
    """Send this rank's part; rank 0 returns what it sent."""
    from perm_ray.models.wire import num_bytes

    client, sender = rank.weight_sender
    client.version = version
    sender.send_weights()
    size = sum(num_bytes(meta) for meta in sender.source.metadata())
    return Sent(size, getattr(sender, "checksum", None))
