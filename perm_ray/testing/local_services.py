"""A Ray cluster of several nodes and an MLflow server, for real, on this machine's loopback addresses.

For tests and benchmarks of what crosses nodes and servers. Every process is a child of ours and ends with the
block; nothing listens on other than loopback (each node has an address of its own in 127.0.0.0/8), and the
cluster takes only its own token. A `prefix` runs each node elsewhere, as in a network namespace.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import psutil

from perm_ray.errors import RunError

START_S = 120
STORE_BYTES = 150_000_000


@dataclass(frozen=True, slots=True)
class Node:
    """One node: its address, CPU slots and custom resources; `prefix` is put before its command."""

    address: str
    num_cpus: int = 2
    resources: Mapping[str, float] = field(default_factory=dict)
    prefix: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that is up: its dashboard, and the environment of a process that may use it."""

    dashboard: str
    environment: Mapping[str, str]


@contextmanager
def ray_cluster(nodes: Sequence[Node], folder: Path) -> Iterator[Cluster]:
    """A cluster of `nodes`, the first of which is the head; its logs go to `folder`."""
    head, *others = nodes
    gcs, dashboard = free_port(head), free_port(head)
    token = secrets.token_hex(32)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
        "RAY_raylet_start_wait_time_s": str(START_S),
        "RAY_ADDRESS": f"{head.address}:{gcs}",
    }
    url = f"http://{head.address}:{dashboard}"
    with ExitStack() as stack:
        # Unix sockets have short names, and pytest's folders are long.
        session = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        options = [
            "--head",
            f"--port={gcs}",
            f"--dashboard-host={head.address}",
            f"--dashboard-port={dashboard}",
        ]
        started = stack.enter_context(
            _ray_node(head, [*options, f"--temp-dir={session}"], environment, folder)
        )
        _await("the Ray head", started, lambda: _answers(f"{url}/api/version", token))
        for count, node in enumerate(others, start=2):  # one by one: together they are slow to come up
            started = stack.enter_context(
                _ray_node(node, [f"--address={head.address}:{gcs}"], environment, folder)
            )
            _await(f"Ray node {node.address}", started, lambda: _count_nodes(url, token) >= count)  # noqa: B023
        yield Cluster(url, environment)


@contextmanager
def mlflow_server(folder: Path, port: int | None = None) -> Iterator[str]:
    """An MLflow server over sqlite in `folder`; its address."""
    port = port or free_port(Node("127.0.0.1"))
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
    command += [
        f"--backend-store-uri=sqlite:///{folder}/mlflow.db",
        f"--artifacts-destination={folder}/artifacts",
    ]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    url = f"http://127.0.0.1:{port}"
    with _process(command, environment, folder / "mlflow.log") as started:
        _await("the MLflow server", started, lambda: _answers(f"{url}/health"))
        yield url


def free_port(node: Node) -> int:
    """A port that nothing listens on, as far as this process can tell."""
    if node.prefix:
        return 20_000 + secrets.randbelow(10_000)  # another host's, which we cannot ask
    with socket.socket() as probe:
        probe.bind((node.address, 0))
        return probe.getsockname()[1]


@contextmanager
def _ray_node(
    node: Node, options: Sequence[str], environment: Mapping[str, str], folder: Path
) -> Iterator[_Started]:
    command = [*node.prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
    command += [f"--node-ip-address={node.address}", f"--num-cpus={node.num_cpus}", "--num-gpus=0"]
    command += [f"--object-store-memory={STORE_BYTES}", f"--resources={json.dumps(dict(node.resources))}"]
    outside = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    with _process(command, outside, folder / f"ray-{node.address}.log") as started:
        yield started


@contextmanager
def _process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[_Started]:
    """Run a command beside us; end it with all its children, also those that left its process group."""
    with log.open("wb") as output:
        process = psutil.Popen(
            list(command),
            env=dict(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield _Started(process, log)
        finally:
            # At once: a node that is asked to end drains for half a minute first.
            family = [process, *process.children(recursive=True)]
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(family, timeout=10)


@dataclass(frozen=True, slots=True)
class _Started:
    process: psutil.Popen
    log: Path


def _await(what: str, started: _Started, is_up: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not is_up():
        ended = started.process.poll() is not None
        if ended or time.monotonic() > deadline:
            why = "ended at once" if ended else f"did not come up within {START_S} s"
            raise RunError(f"{what} {why}: {started.log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.3)


def _count_nodes(url: str, token: str) -> int:
    alive = urlencode({"filter_keys": "state", "filter_predicates": "=", "filter_values": "ALIVE"})
    listed = json.loads(_get(f"{url}/api/v0/nodes?{alive}", token))
    return listed["data"]["result"]["num_after_truncation"]


def _answers(url: str, token: str | None = None) -> bool:
    try:
        _get(url, token)
    except OSError:
        return False
    return True


def _get(url: str, token: str | None) -> bytes:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        return answer.read()
