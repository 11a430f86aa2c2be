"""Trainer to every rollout engine, by version. The only file that knows both sides.

Weights go from trainer rank 0 straight to the engines (gloo on CPU, NCCL on GPU), never through the
driver. The driver calls `push(version)` between two steps, when nothing is being sampled; it returns
when every engine holds that version, received as it was sent, and has dropped its prefix cache, and raises
otherwise. A LoRA adapter is merged on the way, or (`sync.adapter_only`) sent alone and merged by the engines.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from perm_ray.config.training import SyncConfig
from perm_ray.errors import RunError
from perm_ray.rollout.pool import RolloutPool
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


def check_delivery(version: int, checksum: int | None, held: Sequence[tuple[int, int | None]]) -> None:
    """Raise `RunError` naming each engine that does not hold `version`, or got other bytes than were sent.

    `held` has each engine's version and checksum; checksums are None where the backend takes none (NCCL).
    """
    wrong = [
        f"engine {index} holds version {other}" if other != version else f"engine {index} got other weights"
        for index, (other, received) in enumerate(held)
        if (other, received) != (version, checksum)
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
        # Longer than all the waits inside together, so that the one that ran out tells its own story.
        self._outer_timeout_s = 5 * config.timeout_s
        rollouts.on_replaced = self._restore

    def connect(self) -> None:
        """Have trainer rank 0 and all engines join one transfer group."""
        pool = self._rollouts
        self._trainer.connect_engines(pool.actors, pool.engine_config, self._config, self._outer_timeout_s)

    def push(self, version: int) -> SyncStats:
        """Send the trainer's weights to every engine as `version`."""
        start = time.monotonic()
        if self._rollouts.replace_dead(self._config.timeout_s):
            self.connect()
        num_bytes, checksum = self._trainer.send_weights(version, self._outer_timeout_s)
        check_delivery(version, checksum, self._rollouts.held_weights(self._config.timeout_s))
        self._version = version
        return SyncStats(version, time.monotonic() - start, num_bytes)

    def _restore(self) -> None:
        """Connect a rollout engine that was replaced, and send it the weights."""
        self.connect()
        if self._version is not None:
            self.push(self._version)
