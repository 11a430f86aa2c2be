"""One DeepSpeed rank as a Ray actor: the remote shell around `learner.py`.

`group.py` makes the class an actor and is the only caller. The driver imports this file too, so
torch and DeepSpeed are imported inside the methods, in the actor's process.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from perm_ray.config.engines import EngineConfig
from perm_ray.config.training import SyncConfig, TrainerConfig
from perm_ray.errors import RunError
from perm_ray.files import FileDigest
from perm_ray.trainer.batching import RankBatch, Task
from perm_ray.trainer.step_metrics import StepSums

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    from perm_ray.models.sender import WeightSender
    from perm_ray.trainer.learner import Learner


class TrainerRank:
    """One rank of the trainer group. Ranks act together: each call is made on all of them."""

    def __init__(
        self,
        config: TrainerConfig,
        model_dir: Path,
        rank: int,
        seed: int,
        total_steps: int,
        temperature: float,
        task: Task,
    ) -> None:
        self.rank = rank
        self._config = config
        self._model_dir = model_dir
        self._seed = seed
        self._total_steps = total_steps
        self._temperature = temperature
        self._task: Task = task
        self._stop = threading.Event()
        self._store: TCPStore | None = None
        self._started: Learner | None = None
        self._sender: WeightSender | None = None

    @ray.method(concurrency_group="control")
    def where(self) -> str:
        """Return the address of the node this rank lives on, for error messages; answered while it starts."""
        return ray.util.get_node_ip_address()

    def open_store(self) -> tuple[str, int]:
        """Rank 0 only: open the meeting point and return its host and port."""
        from perm_ray.cluster.rendezvous import open_store

        host = ray.util.get_node_ip_address()
        self._store = open_store(host, self._config.num_ranks, self._config.start_timeout_s)
        return host, self._store.port

    def start(self, address: tuple[str, int]) -> None:
        """Meet the other ranks at `address`, load the policy and build the engine."""
        from perm_ray.trainer import deepspeed as engine
        from perm_ray.trainer.learner import Learner

        engine.quiet_libraries()
        engine.join(self._config, self.rank, address, self._store, self._seed)
        self._started = Learner(
            self._config, self._model_dir, self.rank, self._total_steps, self._temperature, self._task
        )

    def train_step(self, step: int, minibatches: Sequence[RankBatch]) -> StepSums:
        """This rank's share of step `step`; every rank gets as many micro-batches, some maybe empty."""
        return self._learner.step(step, minibatches, self._stop.is_set)

    def evaluate(self, minibatch: RankBatch) -> StepSums:
        """Compute this rank's share of a loss, without an update."""
        return self._learner.evaluate(minibatch)

    @ray.method(concurrency_group="control")
    def request_stop(self) -> None:
        """Give up the step under way at its next micro-batch, and every later one. Saving still works."""
        self._stop.set()

    def save(self, path: Path) -> None:
        """Copy this rank's part of a checkpoint, and begin to write it under `path`."""
        self._learner.state.save(path)

    @ray.method(concurrency_group="writing")
    def written(self) -> dict[str, FileDigest]:
        """Wait for the last save's files, while the rank may train: their names and digests."""
        return self._learner.state.written()

    def load(self, path: Path) -> None:
        """Restore a checkpoint into this rank, freshly started."""
        self._learner.state.load(path)

    def export(self, path: Path) -> None:
        """Write the policy as a Hugging Face folder."""
        self._learner.export(path)

    def connect_engines(self, engines: Sequence[Any], engine: EngineConfig, sync: SyncConfig) -> None:
        """Join the transfer group of all rollout engines (handles, and their configuration)."""
        from perm_ray.models.sender import WeightSender

        weights = self._learner.weights(adapter_only=sync.adapter_only)
        address = ray.util.get_node_ip_address()
        self._sender = WeightSender(self.rank, address, weights, engines, engine, sync)

    def send_weights(self, version: int) -> tuple[int, int | None]:
        """Send the policy to the engines as `version`: its bytes, and the checksum if one was taken."""
        if self._sender is None:
            raise RunError(f"Trainer rank {self.rank} has no engines to send to: connect it first.")
        return self._sender.send(version)

    @property
    def _learner(self) -> Learner:
        if self._started is None:
            raise RunError(f"Trainer rank {self.rank} was used before it was started.")
        return self._started
