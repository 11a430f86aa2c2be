"""Which resources a run takes, and the Ray session that provides them.

`demands` is plain arithmetic over the configuration (what `--dry-run` prints); `start_ray` starts a
private cluster of that size on this machine or joins the one at `ray.address`.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from perm_ray.config.judges import JudgesConfig
from perm_ray.config.schema import Config, RayConfig
from perm_ray.errors import ConfigError, RunError


@dataclass(frozen=True, slots=True)
class Demand:
    """`count` actors of one role, each with so many CPUs and GPUs."""

    role: str
    count: int
    num_cpus: float
    num_gpus: float
    model: str = ""


def demands(config: Config) -> tuple[Demand, ...]:
    """What each pool of the run takes."""
    engine, trainer = config.rollout.engine, config.trainer
    return (
        Demand("rollout engine", engine.replicas, engine.num_cpus, engine.num_gpus, config.policy.model),
        *judge_demands(config.judges),
        Demand("trainer rank", trainer.num_ranks, trainer.num_cpus, trainer.num_gpus, config.policy.model),
    )


def judge_demands(judges: JudgesConfig) -> tuple[Demand, ...]:
    """What the judges take."""
    engines = [
        Demand(f"judge engine {name}", engine.replicas, engine.num_cpus, engine.num_gpus, engine.model)
        for name, engine in judges.engines.items()
    ]
    engines += [
        Demand(f"judge endpoint {name}", 1, 0.0, 0.0, e.model) for name, e in judges.endpoints.items()
    ]
    pools = [
        Demand(f"judge {name}", judges.replicas(pool), 0.0, 0.0, f"asks {pool.engine}")
        for name, pool in judges.pools.items()
    ]
    return (*engines, *pools)


def total(rows: Sequence[Demand]) -> tuple[float, float]:
    """`(CPUs, GPUs)` of all rows together."""
    return sum(row.count * row.num_cpus for row in rows), sum(row.count * row.num_gpus for row in rows)


def authenticate(address: str | None) -> None:
    """Turn Ray's token authentication on; call it before anything imports Ray, which reads it then.

    A private cluster (`address` None) gets a token of its own that nobody else knows, and its processes
    listen on loopback only. For an existing one the user's token applies, and `RAY_AUTH_MODE` when set.
    """
    if address is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        return
    if "ray" not in sys.modules:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    elif os.environ.get("RAY_AUTH_MODE") != "token" or "RAY_AUTH_TOKEN" not in os.environ:
        raise RunError("Ray was imported before its token authentication was set: call authenticate() first.")
    # Ray takes the machine's outward address, even when told otherwise, unless there can be no other node.
    os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", GLOO_SOCKET_IFNAME="lo")


def start_ray(config: RayConfig, rows: Sequence[Demand]) -> None:
    """Start a private cluster (`ray.address: null`) for what `rows` ask, or join one.

    A private cluster listens on loopback only. Phases of the loop take turns, so it offers as many CPU
    *slots* as the run's actors ask for, whatever the machine has.
    """
    authenticate(config.address)
    import ray

    if config.address is None:
        cpus, gpus = total(rows)
        ray.init(
            address="local",  # whatever RAY_ADDRESS says
            num_cpus=config.num_cpus or max(1, math.ceil(cpus)),
            num_gpus=None if gpus else 0,
            object_store_memory=int(config.object_store_gb * 2**30),
            include_dashboard=False,
            dashboard_host="127.0.0.1",
            _node_ip_address="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    else:
        ray.init(address=config.address, log_to_driver=False, logging_level=logging.WARNING)


def stop_ray() -> None:
    """Leave the cluster: this run's actors end, and so does a private cluster."""
    import ray

    ray.shutdown()


def await_resources(config: RayConfig, rows: Sequence[Demand]) -> None:
    """Wait until the cluster has as much as `rows` take; say what is missing when it never does.

    A private cluster has what it has: there the answer comes at once.
    """
    import ray

    cpus, gpus = total(rows)
    timeout_s = config.startup_timeout_s if config.address else 0.0
    deadline = time.monotonic() + timeout_s
    while True:
        found = ray.cluster_resources()
        lacking = [
            f"{wanted:g} {kind}s (the cluster has {found.get(kind, 0):g})"
            for kind, wanted in (("CPU", cpus), ("GPU", gpus))
            if found.get(kind, 0) < wanted
        ]
        if not lacking:
            return
        if time.monotonic() > deadline:
            raise RunError(
                f"The run needs {' and '.join(lacking)}, waited {timeout_s:.0f} s: "
                "add nodes, or lower replicas."
            )
        time.sleep(1.0)


def check_local_resources(config: RayConfig, rows: Sequence[Demand]) -> None:
    """Refuse at once what a private cluster can never hold. Raises `ConfigError`."""
    cpus, _ = total(rows)
    offered = config.num_cpus
    if config.address is None and offered is not None and offered < cpus:
        raise ConfigError(
            f"ray.num_cpus must be at least {math.ceil(cpus)}, what the run's actors take together, "
            f"found {offered}: raise it or leave it null."
        )
