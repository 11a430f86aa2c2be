"""What becomes of a trainer group when a step or a rank goes wrong: it says so, soon, and loses nothing."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from perm_ray.config.schema import CheckpointConfig, Config
from perm_ray.config.training import TrainerConfig
from perm_ray.errors import ActorTimeoutError, NotFiniteError, RunError
from perm_ray.runs.checkpoint import Checkpoints
from perm_ray.runs.replay import FailedStep
from perm_ray.runs.run_state import RunState
from perm_ray.trainer.deepspeed import wait_for_rank_0
from perm_ray.trainer.group import TrainerGroup
from tests.support.ranks import in_ranks
from tests.support.sequences import one_turn

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

COLLECTIVE_TIMEOUT_S = 8.0
CONFIG = TrainerConfig(
    num_ranks=2,
    num_cpus=1,
    num_threads=1,
    dtype="float32",
    micro_batch_tokens=64,
    start_timeout_s=120,
    step_timeout_s=120,
    collective_timeout_s=COLLECTIVE_TIMEOUT_S,
)
SOUND = [one_turn((1, 2, 3), (4, 5, 6, 7), (-6.0,) * 4, 0.5)] * 3


@pytest.fixture
def group(ray_cluster: int, tiny_model: Path) -> Iterator[TrainerGroup]:
    group = TrainerGroup(CONFIG, tiny_model, seed=1, total_steps=10)
    group.start_async()
    group.wait_ready()
    yield group
    group.shutdown()


def test_a_step_that_is_not_finite_stops_and_the_checkpoint_before_it_becomes_whole(
    group: TrainerGroup, tmp_path: Path
) -> None:
    group.train_step(0, SOUND)
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointConfig())
    before = dataclasses.replace(RunState.new({}, {}, Config()), step=1)
    checkpoints.save(before, group.save)
    broken = [*SOUND, dataclasses.replace(SOUND[0], advantage=math.nan)]
    with pytest.raises(NotFiniteError, match="loss of step 1 is not a finite number"):
        group.train_step(1, broken)
    with pytest.raises(RunError, match="not running: it has failed"):
        checkpoints.save(before, group.save)
    checkpoints.wait()
    assert checkpoints.load()[0] == before

    FailedStep(1, "a loss", checkpoints.latest_name(), broken).write(tmp_path / "failed.json")
    again = FailedStep.read(tmp_path / "failed.json")
    assert again.checkpoint == "step_000001"
    assert list(again.sequences[:3]) == SOUND


def test_rank_0_may_work_alone_for_long_and_a_rank_that_is_stuck_ends_the_group(group: TrainerGroup) -> None:
    def work_alone(_: object, seconds: float) -> None:
        if dist.get_rank() == 0:
            time.sleep(seconds)
        wait_for_rank_0(dist.get_rank(), 60)

    group.train_step(0, SOUND)
    in_ranks(group, work_alone, COLLECTIVE_TIMEOUT_S + 2)
    stuck = in_ranks(group, lambda _: os.getpid())[1]
    threading.Timer(0.3, os.kill, (stuck, signal.SIGSTOP)).start()
    began = time.monotonic()
    with pytest.raises(ActorTimeoutError, match=r"trainer rank 1 \(node \S+\) does not answer any more"):
        group.train_step(1, SOUND * 700)
    assert time.monotonic() - began < COLLECTIVE_TIMEOUT_S + 50
    with pytest.raises(RunError, match="not running: it has failed"):
        group.train_step(2, SOUND)
