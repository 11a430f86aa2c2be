"""A Ray cluster of several nodes and an MLflow server, for real, on this machine's loopback addresses.

For tests and benchmarks of what crosses nodes and servers. Every process is a child of ours and ends with the
block, and the cluster takes only its own token. Nodes of a cluster listen on all interfaces, so they run in
network namespaces that nothing else can reach: all in one that has only loopback (`one_namespace`), or each
in its own (`namespaces`).
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
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
class Host:
    """Where a process runs: its address there, and what is put before its command to bring it there."""

    address: str
    prefix: Sequence[str]


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a cluster: where it is, its CPU slots and custom resources."""

    host: Host
    num_cpus: int = 2
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that is up: its dashboard, and what a process at the head needs to use it."""

    dashboard: str
    environment: Mapping[str, str]
    prefix: Sequence[str]

    def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run Python with `arguments` at the head; the output is text."""
        return subprocess.run(
            [*self.prefix, sys.executable, *arguments],
            env={**self.environment, **(env or {})},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


@contextmanager
def ray_cluster(nodes: Sequence[Node], folder: Path) -> Iterator[Cluster]:
    """A cluster of `nodes`, the first of which is the head; its logs go to `folder`."""
    head, *others = nodes
    gcs, dashboard = 6379, 8265  # nobody else is there
    token = secrets.token_hex(32)
    environment = {
        # Neither another cluster's settings nor a private one's, which keep to loopback.
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "GLOO_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
        "RAY_raylet_start_wait_time_s": str(START_S),
    }
    url = f"http://{head.host.address}:{dashboard}"
    with ExitStack() as stack:
        # Unix sockets have short names, and pytest's folders are long.
        session = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        options = [
            "--head",
            f"--port={gcs}",
            f"--dashboard-host={head.host.address}",
            f"--dashboard-port={dashboard}",
        ]
        started = stack.enter_context(
            _ray_node(head, [*options, f"--temp-dir={session}"], environment, folder)
        )
        _await("the Ray head", started, lambda: _answers(head.host, f"{url}/api/version", token))
        for count, node in enumerate(others, start=2):  # one by one: together they are slow to come up
            join = [f"--address={head.host.address}:{gcs}"]
            started = stack.enter_context(_ray_node(node, join, environment, folder))
            is_up = functools.partial(_has_nodes, count, head.host, url, token)
            _await(f"Ray node {node.host.address}", started, is_up)
        yield Cluster(url, environment, head.host.prefix)


@contextmanager
def mlflow_server(folder: Path, host: Host) -> Iterator[str]:
    """An MLflow server over sqlite in `folder`, on the loopback of `host`; its address there."""
    port = 5000
    command = [*host.prefix, sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}"]
    command += ["--workers=1", f"--backend-store-uri=sqlite:///{folder}/mlflow.db"]
    command += [f"--artifacts-destination={folder}/artifacts"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    url = f"http://127.0.0.1:{port}"
    with _process(command, environment, folder / "mlflow.log") as started:
        _await("the MLflow server", started, lambda: _answers(host, f"{url}/health"))
        yield url


# ---- network namespaces -------------------------------------------------------------------------


def why_no_namespaces() -> str | None:
    """Why this machine lets us make no network namespaces; None when it does."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    name = _name()
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces are not allowed here ({made.stderr.strip()})"
    _ip("netns", "delete", name)
    return None


@contextmanager
def one_namespace(count: int) -> Iterator[list[Host]]:
    """`count` addresses of the loopback of one namespace, which has no other interface."""
    with _namespace() as name:
        yield [Host(f"127.0.0.{2 + i}", _inside(name)) for i in range(count)]


@contextmanager
def namespaces(count: int) -> Iterator[list[Host]]:
    """`count` namespaces, each with an address of its own, joined by a bridge in one more."""
    with ExitStack() as stack:
        switch = stack.enter_context(_namespace())
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        hosts = []
        for i in range(count):
            name = stack.enter_context(_namespace())
            _ip(
                "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{i}", "netns", switch
            )
            _ip("-n", switch, "link", "set", f"port{i}", "master", "bridge", "up")
            _ip("-n", name, "address", "add", f"10.77.0.{1 + i}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "route", "add", "default", "dev", "eth0")  # by it Ray finds its own address
            hosts.append(Host(f"10.77.0.{1 + i}", _inside(name)))
        yield hosts


@contextmanager
def _namespace() -> Iterator[str]:
    name = _name()
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        _ip("netns", "delete", name)


def _name() -> str:
    return f"perm-ray-{secrets.token_hex(4)}"


def _inside(name: str) -> list[str]:
    return ["ip", "netns", "exec", name]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, check=True)


# ---- processes ----------------------------------------------------------------------------------


@contextmanager
def _ray_node(
    node: Node, options: Sequence[str], environment: Mapping[str, str], folder: Path
) -> Iterator[_Started]:
    command = [*node.host.prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
    command += [f"--node-ip-address={node.host.address}", f"--num-cpus={node.num_cpus}", "--num-gpus=0"]
    command += [f"--object-store-memory={STORE_BYTES}", f"--resources={json.dumps(dict(node.resources))}"]
    with _process(command, environment, folder / f"ray-{node.host.address}.log") as started:
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


def _has_nodes(count: int, host: Host, url: str, token: str) -> bool:
    alive = urlencode({"filter_keys": "state", "filter_predicates": "=", "filter_values": "ALIVE"})
    answer = _get(host, f"{url}/api/v0/nodes?{alive}", token)
    return answer is not None and json.loads(answer)["data"]["result"]["num_after_truncation"] >= count


def _answers(host: Host, url: str, token: str = "") -> bool:
    return _get(host, url, token) is not None


_GET = """
import sys, urllib.request
_, url, token = sys.argv
request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
print(urllib.request.urlopen(request, timeout=10).read().decode())
"""


def _get(host: Host, url: str, token: str) -> str | None:
    """What is at an address that only `host` can reach; None when that cannot be had."""
    command = [*host.prefix, sys.executable, "-c", _GET, url, token]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout if done.returncode == 0 else None
