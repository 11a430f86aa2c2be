"""The driver's handle on the trainer: DeepSpeed ranks that act together, or fail together.

`train_step` deals a step's sequences to the ranks and merges what they report. No wait is without a
bound, and the first rank that fails ends the group: the others would only wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from perm_ray.cluster.calls import explain, wait_all
from perm_ray.config.engines import EngineConfig
from perm_ray.config.training import SyncConfig, TrainerConfig
from perm_ray.errors import (
    ActorFailedError,
    ActorTimeoutError,
    Interrupted,
    NotFiniteError,
    PermRayError,
    RunError,
)
from perm_ray.files import FileDigest
from perm_ray.trainer.actor import TrainerRank
from perm_ray.trainer.batching import RankBatch, Task, TrainSequence, plan_metrics, plan_step
from perm_ray.trainer.step_metrics import step_metrics

LISTEN_S = 1.0  # after a failure, for the other ranks' side of it
ANSWER_S = 5.0  # for a rank to say where it is, which it does while it trains, too


class TrainerGroup:
    """The trainer ranks together. `start_async`, `wait_ready`, then a call at a time; `shutdown` at the end.

    Args:
        config: The section `trainer`.
        model_dir: The folder of the first weights.
        seed: That of the run.
        total_steps: Steps of the whole run, for the learning rate's schedule.
        scheduling: One Ray scheduling strategy for each rank, if they are to be placed.
        temperature: At which the sequences are sampled; log-probs are those of logits / temperature.
        task: What is learned from, which chooses the objective (`objectives/`).
    """

    def __init__(
        self,
        config: TrainerConfig,
        model_dir: Path,
        seed: int,
        total_steps: int,
        scheduling: Sequence[Any] | None = None,
        temperature: float = 1.0,
        task: Task = "policy",
    ) -> None:
        self._config = config
        self._model_dir = model_dir.absolute()  # a rank has another working directory
        self._seed = seed
        self._total_steps = total_steps
        self._temperature = temperature
        self._task: Task = task
        self._scheduling = scheduling or ["DEFAULT"] * config.num_ranks
        self._nodes = ["not placed yet"] * config.num_ranks
        self._starting: list[ray.ObjectRef] = []
        self._actors: list[Any] = []
        self._refuses = False  # after a step that was not finite; the ranks live, and may still write

    @property
    def ranks(self) -> list[Any]:
        """Return the actors' handles, in order of rank."""
        if self._refuses or not self._actors:
            raise RunError(
                "The trainer group is not running: it has failed, or was shut down or never started."
            )
        return self._actors

    def start_async(self) -> None:
        """Create the actors and begin their start; returns at once."""
        ranks = range(self._config.num_ranks)
        self._actors = [self._create(*placed) for placed in zip(ranks, self._scheduling, strict=True)]
        address = self.ranks[0].open_store.remote()
        self._starting = [rank.start.remote(address) for rank in self.ranks]

    def _create(self, rank: int, strategy: Any) -> Any:
        config = self._config
        threads = {"control": 1, "writing": 1}
        as_actor: Any = ray.remote(concurrency_groups=threads)  # pyright: ignore[reportCallIssue]
        actor = as_actor(TrainerRank).options(
            num_cpus=config.num_cpus,
            num_gpus=config.num_gpus,
            resources=config.resources,
            scheduling_strategy=strategy,
            max_restarts=0,  # a rank that comes back alone is of no use to the others
            runtime_env={"env_vars": actor_environment(config)},
        )
        task, temperature = self._task, self._temperature
        return actor.remote(config, self._model_dir, rank, self._seed, self._total_steps, temperature, task)

    def wait_ready(self) -> None:
        """Wait until every rank has its policy loaded."""
        deadline = time.monotonic() + self._config.start_timeout_s
        placed = [rank.where.remote() for rank in self.ranks]
        self._nodes = self._wait(placed, "waiting for a place", self._config.start_timeout_s)
        self._wait(self._starting, "starting", max(0.0, deadline - time.monotonic()))

    def train_step(self, step: int, sequences: Sequence[TrainSequence]) -> dict[str, float]:
        """Update the policy from `sequences`, as often as the objective says; returns the step's metrics
        (`policy/...`).

        Raises `Interrupted`, with the policy as it was, after `request_stop`. A step that has made its first
        of several updates is finished instead: half a step is no state that a run can go on from.
        """
        if not sequences:
            raise RunError(f"Step {step} has no sequences to train on: every rollout was masked.")
        plan = self._plan(sequences, self._config.objective.minibatches, f"{self._seed}/{step}")
        # Each rank is sent its own share only, through the object store.
        shares = [ray.put(share) for share in plan]
        refs = [r.train_step.remote(step, s) for r, s in zip(self.ranks, shares, strict=True)]
        reports = self._wait(refs, f"training step {step}", self._config.step_timeout_s)
        if any(report.interrupted for report in reports):
            raise Interrupted(f"Step {step} was given up as asked; the policy is as the step before left it.")
        return step_metrics(reports) | plan_metrics(plan)

    def evaluate(self, sequences: Sequence[TrainSequence]) -> float:
        """Return the loss of `sequences` as the objective has it, without an update."""
        plan = self._plan(sequences, 1, "")
        refs = [r.evaluate.remote(share[0]) for r, share in zip(self.ranks, plan, strict=True)]
        reports = self._wait(refs, "evaluating", self._config.step_timeout_s)
        return sum(report.loss for report in reports)

    def _plan(
        self, sequences: Sequence[TrainSequence], minibatches: int, shuffle_seed: str
    ) -> list[list[RankBatch]]:
        config = self._config
        return plan_step(
            sequences,
            config.micro_batch_tokens,
            config.num_ranks,
            minibatches,
            shuffle_seed=shuffle_seed,
            share_prompts=config.share_prompts,
        )

    def request_stop(self) -> None:
        """Query the ranks to give up the step under way; returns at once. The group trains no more."""
        for rank in self._actors:
            rank.request_stop.remote()

    def save(self, path: Path) -> Callable[[], dict[str, FileDigest]]:
        """Copy the training state; the ranks write it under the folder `path` while they go on training.

        Not atomic: write aside, then rename. What is returned waits until all is written, and may be
        called from another thread; it gives every file's name under `path` and digest.
        """
        refs = [rank.save.remote(path.absolute()) for rank in self.ranks]
        self._wait(refs, f"saving to {path}", self._config.step_timeout_s)
        writing = self._calls([rank.written.remote() for rank in self.ranks])

        def written() -> dict[str, FileDigest]:
            bound = self._config.step_timeout_s
            parts = wait_all(writing, timeout_s=bound, doing=f"writing {path}")
            return {name: digest for part in parts for name, digest in part.items()}

        return written

    def load(self, path: Path) -> None:
        """Restore what `save` wrote. The group must be freshly started; with another number of ranks the
        state is shared out anew, and training goes on equal within rounding instead of bitwise."""
        refs = [rank.load.remote(path.absolute()) for rank in self.ranks]
        self._wait(refs, f"loading {path}", self._config.step_timeout_s)

    def export(self, path: Path) -> None:
        """Write the policy to `path` as a folder that transformers and vLLM load."""
        refs = [rank.export.remote(path.absolute()) for rank in self.ranks]
        self._wait(refs, f"exporting to {path}", self._config.step_timeout_s)

    def connect_engines(
        self, engines: Sequence[Any], engine: EngineConfig, sync: SyncConfig, timeout_s: float
    ) -> None:
        """Have every rank join the transfer group of all rollout engines."""
        refs = [rank.connect_engines.remote(engines, engine, sync) for rank in self.ranks]
        self._wait(refs, "connecting to the engines", timeout_s)

    def send_weights(self, version: int, timeout_s: float) -> tuple[int, int | None]:
        """Send the policy to every connected engine as `version`.

        Returns:
            Its size in bytes, and the checksum of what was sent, which the NCCL backend does not take.
        """
        refs = [rank.send_weights.remote(version) for rank in self.ranks]
        return self._wait(refs, f"sending weights, version {version}", timeout_s)[0]

    def shutdown(self) -> None:
        """Kill the ranks. May be called more than once."""
        for rank in self._actors:
            ray.kill(rank, no_restart=True)
        self._actors = []

    def _wait(self, refs: Sequence[ray.ObjectRef], doing: str, timeout_s: float) -> list[Any]:
        """Return every rank's result, in order. The first failure of any rank, or the bound, ends the
        group."""
        calls = self._calls(refs)
        try:
            return wait_all(calls, timeout_s=timeout_s, doing=doing)
        except NotFiniteError:
            self._refuses = True
            raise
        except ActorTimeoutError:
            self.shutdown()
            raise
        except PermRayError as error:
            culprit = _first_death(calls, doing) or self._first_silence(error, doing) or error
            self.shutdown()
            raise culprit from error.__cause__

    def _first_silence(self, error: PermRayError, doing: str) -> PermRayError | None:
        """Return the error of a rank that does not even say where it is, if another failed of waiting for
        it."""
        if not isinstance(error, ActorFailedError):
            return None
        asked = self._calls([rank.where.remote() for rank in self._actors])
        _, silent = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S)
        for role, ref in asked.items():
            if ref in silent:
                return ActorTimeoutError(
                    f"{role} does not answer any more (its process or its machine is stopped) while {doing}; "
                    f"what another rank says: {error}"
                )
        return None

    def _calls(self, refs: Sequence[ray.ObjectRef]) -> dict[str, ray.ObjectRef]:
        """Return each rank's reference under the rank's name for people."""
        roles = [f"trainer rank {rank} (node {node})" for rank, node in enumerate(self._nodes)]
        return dict(zip(roles, refs, strict=True))


def _first_death(calls: Mapping[str, ray.ObjectRef], doing: str) -> PermRayError | None:
    """Return the error of a rank whose process is gone, if there is one.

    When a rank dies its peers fail too, of broken connections, and may be heard of first.
    """
    refs = list(calls.values())
    finished, _ = ray.wait(refs, num_returns=len(refs), timeout=LISTEN_S)
    for role, ref in calls.items():
        if ref in finished:
            try:
                ray.get(ref)
            except RayActorError as error:
                return explain(error, role, doing)
            except RayError:
                continue
    return None


def actor_environment(config: TrainerConfig) -> dict[str, str]:
    """Environment of a rank's process: libgomp and malloc read theirs before any of our code runs."""
    environment = {
        "OMP_NUM_THREADS": str(config.num_threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads make a busy machine seven times slower
        # Keep freed memory: page faults cost 13 % of a step. The three only help together.
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "8589934592",
        "MALLOC_TOP_PAD_": "268435456",
        "THP_MEM_ALLOC_ENABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.num_gpus == 0:
        environment["DS_ACCELERATOR"] = "cpu"
    else:  # micro-batches have all lengths: fixed segments would leave memory in fragments
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    return environment
