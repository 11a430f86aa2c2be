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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import psutil

from perm_ray.errors import RunError

START_S = 120.0
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
        stack.enter_context(_ray_node(head, [*options, f"--temp-dir={session}"], environment, folder))
        _await(url + "/api/version", "the Ray head", token)
        for node in others:
            stack.enter_context(_ray_node(node, [f"--address={head.address}:{gcs}"], environment, folder))
        _await_nodes(url, token, len(nodes))
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
    with _process(command, environment, folder / "mlflow.log"):
        _await(url + "/health", "the MLflow server")
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
) -> Iterator[None]:
    command = [*node.prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
    command += [f"--node-ip-address={node.address}", f"--num-cpus={node.num_cpus}", "--num-gpus=0"]
    command += [f"--object-store-memory={STORE_BYTES}", f"--resources={json.dumps(dict(node.resources))}"]
    outside = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    with _process(command, outside, folder / f"ray-{node.address}.log"):
        yield


@contextmanager
def _process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
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
            yield
        finally:
            family = [*process.children(recursive=True), process]
            for member in family:
                with _gone():
                    member.terminate()
            _, alive = psutil.wait_procs(family, timeout=10)
            for member in alive:
                with _gone():
                    member.kill()
            psutil.wait_procs(alive, timeout=10)


@contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except psutil.NoSuchProcess:
        return


def _await(url: str, what: str, token: str | None = None) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            _get(url, token)
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(f"{what} did not answer at {url} within {START_S:.0f} s ({error}).") from error
            time.sleep(0.3)
        else:
            return


def _await_nodes(url: str, token: str, count: int) -> None:
    alive = urlencode({"filter_keys": "state", "filter_predicates": "=", "filter_values": "ALIVE"})
    deadline = time.monotonic() + START_S
    while True:
        listed = json.loads(_get(f"{url}/api/v0/nodes?{alive}", token))
        found = listed["data"]["result"]["num_after_truncation"]
        if found >= count:
            return
        if time.monotonic() > deadline:
            raise RunError(f"{count} Ray nodes were started and {found} came up within {START_S:.0f} s.")
        time.sleep(0.3)


def _get(url: str, token: str | None) -> bytes:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        return answer.read()
