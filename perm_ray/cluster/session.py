"""Ray as this project starts it or joins it: with token authentication, and on loopback unless joined."""

from __future__ import annotations

import logging
import math
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from perm_ray.cluster.placement import Demand, Places, reserve, total
from perm_ray.config.schema import RayConfig
from perm_ray.errors import ConfigError, RunError

# A socket's path may have 107 bytes; Ray's /ray/session_<date and time>_<pid>/sockets/plasma_store takes 68.
MAX_TMPDIR_BYTES = 39


def authenticate(address: str | None) -> None:
    """Turn Ray's token authentication on; to be called before `ray.init`.

    A private cluster (`address` None) gets a token of its own that nobody else knows, and its processes
    listen on loopback only. For an existing one the user's token applies, and `RAY_AUTH_MODE` when set.
    """
    if address is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    else:
        if os.environ.get("RAY_AUTH_MODE") != "token" or "RAY_AUTH_TOKEN" not in os.environ:
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        # Ray takes the machine's outward address, even when told otherwise, unless there can be no other.
        os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", GLOO_SOCKET_IFNAME="lo")
    if "ray" in sys.modules:  # it has read both when it was imported: the mode it reads again, the other not
        sys.modules["ray"]._raylet.Config.initialize("")
        constants: Any = sys.modules["ray._private.ray_constants"]
        constants.ENABLE_RAY_CLUSTER = address is not None


@contextmanager
def cluster(
    config: RayConfig,
    rows: Sequence[Demand],
    say: Callable[[str], None],
    started: Callable[[], None] = lambda: None,
) -> Iterator[Places]:
    """Start or join Ray with a place for every actor of `rows`, and leave it on the way out, however that is.

    Args:
        config: The section `ray`.
        rows: What the actors take.
        say: Called with a line of text while resources are waited for.
        started: Called as soon as Ray is up, such as to take back the signal handlers that Ray replaces.
    """
    try:
        start_ray(config, rows)
        started()
        yield reserve(config, rows, say)
    finally:
        stop_ray()


def start_ray(config: RayConfig, rows: Sequence[Demand]) -> None:
    """Start a private cluster (`ray.address: null`) for what `rows` ask, or join one.

    A private cluster listens on loopback only. Phases of the loop take turns, so it offers as many CPU
    *slots* as the run's actors ask for, whatever the machine has. Raises `RunError` when there is no
    cluster at the address, or it does not take the token.
    """
    authenticate(config.address)
    import ray

    if config.address is None:
        check_socket_path(tempfile.gettempdir())
        wanted = total(rows)
        ray.init(
            address="local",  # whatever RAY_ADDRESS says
            num_cpus=config.num_cpus or max(1, math.ceil(wanted.pop("CPU", 0.0))),
            num_gpus=None if wanted.pop("GPU", 0.0) else 0,
            resources=wanted,
            object_store_memory=int(config.object_store_gb * 2**30),
            include_dashboard=False,
            dashboard_host="127.0.0.1",
            _node_ip_address="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        return
    # Fault boundary, somebody else's cluster: whatever Ray raises becomes one sentence.
    try:
        ray.init(address=config.address, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:
        why = " ".join(str(error).split())[:300]
        raise RunError(
            f"The Ray cluster at ray.address={config.address} could not be joined "
            f"({type(error).__name__}: {why}): check that it runs, and that RAY_AUTH_TOKEN or "
            "~/.ray/auth_token holds its token."
        ) from error


def check_socket_path(folder: str) -> None:
    """Refuse a temporary folder under which the paths of Ray's sockets are longer than the system takes.

    Raises:
        ConfigError: It says how long the path may be.
    """
    if len(os.fsencode(folder)) > MAX_TMPDIR_BYTES:
        raise ConfigError(
            f"TMPDIR must be a path of at most {MAX_TMPDIR_BYTES} bytes (Ray's sockets lie below it), found "
            f"{len(os.fsencode(folder))} in {folder}: set a shorter one, such as TMPDIR=/tmp."
        )


def stop_ray() -> None:
    """Leave the cluster: this run's actors end, and so does a private cluster."""
    import ray

    ray.shutdown()
