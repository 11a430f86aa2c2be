"""One private Ray cluster for the tests in this folder, and trainer processes that several of them use."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from perm_ray.config.training import TrainerConfig

if TYPE_CHECKING:
    from perm_ray.trainer.group import TrainerGroup


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[int]:
    """Its CPU slots, sixteen whatever the machine has: actors of a test may outnumber its cores."""
    import ray

    num_cpus = 16
    ray.init(
        address="local",  # whatever else runs on this machine
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=200 << 20,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    try:
        yield num_cpus
    finally:
        ray.shutdown()


@pytest.fixture(scope="session")
def groups(ray_cluster: int, tiny_model: Path) -> Iterator[dict[int, TrainerGroup]]:
    """Trainer groups of one rank and of two, in whose processes tests make learners of their own: a process
    takes ten seconds to start, a learner a tenth of one."""
    from perm_ray.trainer.group import TrainerGroup

    config = TrainerConfig(
        num_cpus=1,
        num_threads=1,
        dtype="float32",
        start_timeout_s=200,
        step_timeout_s=60,
        collective_timeout_s=30,
    )
    started: dict[int, TrainerGroup] = {}
    try:
        for num_ranks in (1, 2):
            of_ranks = dataclasses.replace(config, num_ranks=num_ranks)
            started[num_ranks] = TrainerGroup(of_ranks, tiny_model, seed=1, total_steps=1)
            started[num_ranks].start_async()
        for group in started.values():
            group.wait_ready()
        yield started
    finally:
        for group in started.values():
            group.shutdown()
