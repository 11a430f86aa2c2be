"""A small private Ray cluster for the tests in this folder: one per module, always shut down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


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
