# ruff: noqa: N802  the stand-in has the names of NVML
"""What the doctor says of GPUs; NVML is a stand-in with its documented functions, since there is no GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from perm_ray.cluster.doctor.finding import Finding, Level
from perm_ray.cluster.doctor.gpus import GB, check_gpus
from perm_ray.config.load import load_config
from perm_ray.config.schema import Config

ONE_GPU = load_config("one-gpu")


class NVMLError(Exception):
    """NVML's base error."""


class Nvml:
    """Cards of `gb` each, `used` of each taken, linked or not."""

    NVMLError = NVMLError

    def __init__(
        self, gb: float = 24, count: int = 1, used: float = 0.5, cuda: int = 13020, near: bool = True
    ) -> None:
        self._gb, self._count, self._used, self._cuda, self._near = gb, count, used, cuda, near

    def nvmlInit(self) -> None:
        if self._count < 0:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return self._count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return self._cuda

    def nvmlSystemGetDriverVersion(self) -> str:
        return "590.1"

    def nvmlDeviceGetName(self, _handle: int) -> str:
        return "NVIDIA Card"

    def nvmlDeviceGetMemoryInfo(self, _handle: int) -> Any:
        return SimpleNamespace(total=int(self._gb * GB), used=int(self._used * GB))

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: int) -> list[Any]:
        return [SimpleNamespace(pid=4711)]

    def nvmlDeviceGetTopologyCommonAncestor(self, _one: int, _other: int) -> int:
        return 10 if self._near else 50

    def nvmlDeviceGetNvLinkState(self, _handle: int, _link: int) -> int:
        raise NVMLError("Not Supported")


def found(config: Config, nvml: Nvml) -> list[Finding]:
    return list(check_gpus(config, nvml))


def test_a_card_that_fits_is_well() -> None:
    findings = found(ONE_GPU, Nvml())
    assert [each.level for each in findings] == [Level.OK, Level.OK]
    assert findings[0].found == "1: NVIDIA Card; driver 590.1, CUDA up to 13.2"


@pytest.mark.parametrize(
    ("nvml", "level", "said", "remedy"),
    [
        (Nvml(count=-1), Level.PROBLEM, "NVML says: Driver Not Loaded", "driver"),
        (Nvml(count=0), Level.PROBLEM, "0 here, the run asks for 1", "one-gpu.yaml"),
        (Nvml(gb=12), Level.PROBLEM, "takes", "rollout.engine.kv_cache_gb"),
        (Nvml(used=9), Level.WARNING, "9.0 of 24.0 GB are used by 4711", "end them"),
        (Nvml(count=2, near=False), Level.WARNING, "GPUs 0-1 reach each other through the host", "ranks"),
    ],
)
def test_what_is_wrong_is_told_with_a_remedy(nvml: Nvml, level: Level, said: str, remedy: str) -> None:
    bad = [each for each in found(ONE_GPU, nvml) if each.level != Level.OK]
    assert bad
    assert bad[0].level == level
    assert said in bad[0].found
    assert remedy in bad[0].remedy


def test_an_old_driver_and_a_wrong_interface_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"nvidia-cuda-runtime": "13.0.96"}[name])
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "nowhere0")
    bad = [each.found for each in found(ONE_GPU, Nvml(cuda=12080)) if each.level == Level.PROBLEM]
    assert bad[0] == "the packages are built for CUDA 13.0.96, the driver bears 12.8"
    assert "nowhere0" in bad[1]


def test_nothing_is_said_where_no_gpu_is_asked_for_and_none_is_here() -> None:
    assert found(load_config("local"), Nvml(count=-1)) == []


def test_packages_for_cpus_are_a_problem_of_a_run_on_gpus() -> None:
    pytest.importorskip("torch")
    try:
        import pynvml  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        (finding,) = check_gpus(ONE_GPU)
        assert (finding.level, "gpu.lock" in finding.remedy) == (Level.PROBLEM, True)
        assert list(check_gpus(load_config("local"))) == []
    else:
        pytest.skip("the GPU packages are installed")
