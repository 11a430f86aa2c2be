"""A small private Ray cluster for the tests in this folder: one per module, always shut down."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from perm_ray.trainer.group import TrainerGroup


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Eight CPU slots, whatever the machine has: actors of a test may outnumber its cores."""
    import ray

    ray.init(
        address="local",  # whatever else runs on this machine
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=200 << 20,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `perm_ray.testing.tiny_model`, written once."""
    from perm_ray.testing.tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def groups(
    request: pytest.FixtureRequest, ray_cluster: None, tiny_model: Path
) -> Iterator[dict[int, TrainerGroup]]:
    """Trainer groups of one rank and of two with the module's CONFIG, whose processes other learners are made
    in: a process takes ten seconds to start."""
    from perm_ray.trainer.group import TrainerGroup

    started: dict[int, TrainerGroup] = {}
    try:
        for num_ranks in (1, 2):
            config = dataclasses.replace(request.module.CONFIG, num_ranks=num_ranks)
            started[num_ranks] = TrainerGroup(config, tiny_model, seed=1, total_steps=10)
            started[num_ranks].start_async()
        for group in started.values():
            group.wait_ready()
        yield started
    finally:
        for group in started.values():
            group.shutdown()
