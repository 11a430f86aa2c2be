"""This machine's GPUs, for a run of a configuration: driver, memory, who uses them, and what they lack.

NVML (nvidia-ml-py) tells; it comes with the GPU packages. By its documentation: it has not been asked by this
project on a machine with a GPU yet.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from perm_ray.cluster.doctor.finding import Finding, ok, problem, warning
from perm_ray.cluster.placement import demands, total
from perm_ray.cluster.planning.plan import Machine, make_plan
from perm_ray.config.schema import Config
from perm_ray.errors import UserError

GB = 2**30
SHARED_MEMORY_GB = 1.0  # NCCL between processes of a node, and Ray's object store
USED_GB = 1.0  # of a GPU that is free: what the driver keeps
_SINGLE_BOARD = 20  # NVML_TOPOLOGY_MULTIPLE: behind the switches of one socket, from there on farther apart


def check_gpus(config: Config, nvml: Any = None) -> Iterator[Finding]:
    """Yield what is found of GPUs; nothing where the run asks for none and there are none.

    Args:
        config: Its roles ask for GPUs.
        nvml: The module `pynvml`; None imports it.
    """
    asked = total(demands(config)).get("GPU", 0.0)
    try:
        nvml = nvml or importlib.import_module("pynvml")
        nvml.nvmlInit()
    except ImportError:
        if asked:
            found = f"the run asks for {asked:g} GPUs, and the packages are those for CPUs"
            yield problem("gpus", found, "install requirements/gpu.lock (docs/how-to/cluster.md)")
        return
    except nvml.NVMLError as error:
        if asked:
            found = f"the run asks for {asked:g} GPUs, and NVML says: {error}"
            yield problem("gpus", found, "install NVIDIA's driver, or give the container its GPUs")
        return
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    yield from _driver(nvml, handles)
    yield from _used(nvml, handles)
    yield from _links(nvml, handles)
    if asked:
        yield from _fits(config, asked, [nvml.nvmlDeviceGetMemoryInfo(handle).total for handle in handles])
        yield from _surroundings(config)


def _driver(nvml: Any, handles: list[Any]) -> Iterator[Finding]:
    """Yield driver and names, and whether the installed CUDA libraries are newer than the driver bears."""
    version = nvml.nvmlSystemGetCudaDriverVersion()  # 13020 is 13.2
    bears = (version // 1000, version % 1000 // 10)
    names = ", ".join(nvml.nvmlDeviceGetName(handle) for handle in handles) or "none"
    driver = nvml.nvmlSystemGetDriverVersion()
    yield ok("gpus", f"{len(handles)}: {names}; driver {driver}, CUDA up to {bears[0]}.{bears[1]}")
    try:
        runtime = importlib.metadata.version("nvidia-cuda-runtime")
    except importlib.metadata.PackageNotFoundError:
        return
    if int(runtime.partition(".")[0]) > bears[0]:
        found = f"the packages are built for CUDA {runtime}, the driver bears {bears[0]}.{bears[1]}"
        yield problem("gpus", found, "install a newer driver")


def _used(nvml: Any, handles: list[Any]) -> Iterator[Finding]:
    for index, handle in enumerate(handles):
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        if memory.used > USED_GB * GB:
            processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            who = ", ".join(str(each.pid) for each in processes) or "processes that are not seen from here"
            found = f"GPU {index}: {memory.used / GB:.1f} of {memory.total / GB:.1f} GB are used by {who}"
            yield warning("gpus", found, "end them: an engine does not start unless its share is free")


def _links(nvml: Any, handles: list[Any]) -> Iterator[Finding]:
    """Yield how far GPUs are from each other: weights and gradients go between them."""
    far = []
    for (i, one), (j, other) in itertools.combinations(enumerate(handles), 2):
        if nvml.nvmlDeviceGetTopologyCommonAncestor(one, other) > _SINGLE_BOARD and not _nvlink(nvml, one):
            far.append(f"{i}-{j}")
    if far:
        found = f"no NVLink, and GPUs {', '.join(far)} reach each other through the host"
        yield warning("gpus", found, "expect slow gradients: trainer.lora, or fewer ranks, move less")


def _nvlink(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetNvLinkState(handle, 0))
    except nvml.NVMLError:  # the card has none
        return False


def _fits(config: Config, asked: float, memory: list[int]) -> Iterator[Finding]:
    """Yield what `perm-ray plan` says for the GPUs that are here."""
    if config.ray.address is None and asked > len(memory):
        remedy = "lower replicas and trainer.num_ranks, or share a GPU as configs/one-gpu.yaml does"
        yield problem("gpus", f"{len(memory)} here, the run asks for {asked:g}", remedy)
        return
    try:
        plan = make_plan(config, Machine(min(memory, default=0), max(1, len(memory))))
    except UserError as error:
        yield warning("gpus", f"memory not checked: {error}", "see perm-ray plan")
        return
    for each in plan.problems:
        what, _, remedy = each.partition(": ")
        yield problem("gpus", what, remedy)
    if not plan.problems:
        yield ok("gpus", "every role fits its share of memory (perm-ray plan shows it)")


def _surroundings(config: Config) -> Iterator[Finding]:
    """Yield what NCCL and DeepSpeed need beside GPUs."""
    shared = shutil.disk_usage("/dev/shm").total / GB if Path("/dev/shm").is_dir() else 0.0
    if shared < SHARED_MEMORY_GB:
        found = f"/dev/shm has {shared:.2f} GB"
        yield warning("gpus", found, "give the container more: --shm-size=8g")
    interface = os.environ.get("NCCL_SOCKET_IFNAME", "").lstrip("^=").split(",")[0]
    if interface and not any(name.startswith(interface) for name in psutil.net_if_addrs()):
        found = f"NCCL_SOCKET_IFNAME is {interface}, and no interface is called so"
        yield problem("gpus", found, "unset it, or name one that ip link shows")
    if config.trainer.offload_optimizer and not (shutil.which("g++") and shutil.which("ninja")):
        found = "trainer.offload_optimizer compiles DeepSpeed's CPU Adam, and g++ or ninja is missing"
        yield problem("gpus", found, "install both, or leave the optimizer on the GPU")
