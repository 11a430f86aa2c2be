"""A small private Ray cluster for the tests in this folder: one per module, always shut down."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

# Read when ray, torch and libgomp are loaded, so set before any of them is. Without a mode Ray would
# write a token to the user's home; with one of our own, nobody else on the machine can join.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ray: starts a local Ray cluster with real actors")


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Four logical CPUs, whatever the machine has: actors of a test may outnumber its cores."""
    import ray

    ray.init(
        num_cpus=4,
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
