"""The Slurm script, run: with stand-ins for Slurm, Ray and perm-ray that write down what they are asked for.

What Slurm itself does with the script is not shown by this; order, token, signals and exit codes are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "cluster" / "slurm" / "perm_ray.sbatch"
WAIT_S = 30.0

STAND_INS = {
    "scontrol": "printf '%s\\n' n1 n2 n3",
    "srun": """
for argument in "$@"; do
    case $argument in --nodelist=*) export NODE=${argument#*=} ;; esac
    case $argument in --*) shift ;; *) break ;; esac
done
exec "$@"
""",
    "ray": """
if [ "$1" = health-check ]; then grep -q 'start n1' "$LOG"; exit; fi
trap 'echo "end $NODE" >> "$LOG"; exit 0' TERM
echo "start $NODE $*" >> "$LOG"
while :; do sleep 0.05; done
""",
    "perm-ray": """
echo "driver $*" >> "$LOG"
echo "token $RAY_AUTH_MODE $(stat -c %a "$RAY_AUTH_TOKEN_PATH") $(wc -c < "$RAY_AUTH_TOKEN_PATH")" >> "$LOG"
trap 'sleep 0.5; echo checkpoint >> "$LOG"; exit 143' TERM
until [ "$(grep -c ^start "$LOG")" = 3 ]; do sleep 0.05; done # as perm_ray waits for what it asks for
echo running >> "$LOG"
if [ -n "$EXIT_WITH" ]; then exit "$EXIT_WITH"; fi
while :; do sleep 0.05; done
""",
}


@dataclass(frozen=True)
class Place:
    """A checkout with stand-ins in its environment, a home and a log."""

    path: Path
    env: dict[str, str]

    @property
    def log(self) -> list[str]:
        file = self.path / "log"
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else []

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        command = ["bash", str(SCRIPT), *arguments]
        return subprocess.Popen(command, env=self.env | env, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str, **env: str) -> tuple[int, str]:
        with self.start(*arguments, **env) as process:
            _, said = process.communicate(timeout=WAIT_S)
        return process.returncode, said

    def wait_for(self, line: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while line not in self.log:
            assert time.monotonic() < deadline, f"no {line!r} in {self.log}"
            time.sleep(0.05)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (tmp_path / "home").mkdir()
    for name, text in STAND_INS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "LOG": str(tmp_path / "log"),
        "EXIT_WITH": "",
    }
    env |= {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "n[1-3]"}
    env |= {"SLURM_CPUS_PER_TASK": "32", "SLURM_GPUS_PER_NODE": "h100:4", "PERM_RAY_HEAD_IP": "10.1.2.3"}
    # The stand-ins are found before the script puts the checkout's environment first: scontrol and srun, too.
    return Place(tmp_path, env | {"PATH": f"{programs}:{env['PATH']}"})


def test_a_run_from_start_to_end(place: Place) -> None:
    code, said = place.run("run.name=first", EXIT_WITH="0")
    assert code == 0, said
    starts = {line.split()[1]: line for line in place.log if line.startswith("start")}
    assert "--head" in starts["n1"]
    assert "--port=20041" in starts["n1"]
    assert '--resources={"rollout": 4}' in starts["n1"]
    assert '--resources={"trainer": 4}' in starts["n3"]
    for node in ("n2", "n3"):
        assert "--address=10.1.2.3:20041" in starts[node]
        assert "--num-cpus=32 --num-gpus=4" in starts[node]
    config = place.path / "configs" / "clusters" / "slurm.yaml"
    assert f"driver train --config {config} run.name=first ray.address=10.1.2.3:20041" in place.log
    assert "token token 600 64" in place.log
    assert {line for line in place.log if line.startswith("end")} == {"end n1", "end n2", "end n3"}
    assert list((place.path / "home").iterdir()) == []  # the token is gone


def test_the_signal_before_the_limit_reaches_the_driver_and_its_checkpoint_is_waited_for(
    place: Place,
) -> None:
    process = place.start("run.name=first")
    place.wait_for("running")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 143
    ends = [i for i, line in enumerate(place.log) if line.startswith("end")]
    assert len(ends) == 3
    assert place.log.index("checkpoint") < min(ends)
    assert list((place.path / "home").iterdir()) == []


def test_a_failed_driver_fails_the_job_and_leaves_nothing(place: Place) -> None:
    code, _ = place.run(EXIT_WITH="1")
    assert code == 1
    assert sum(line.startswith("end") for line in place.log) == 3


@pytest.mark.parametrize("option", ["--resume=/mnt/runs/first", "--config=mine.yaml"])
def test_a_configuration_of_ones_own_replaces_the_default(place: Place, option: str) -> None:
    code, said = place.run(option, EXIT_WITH="0")
    assert code == 0, said
    assert f"driver train {option} ray.address=10.1.2.3:20041" in place.log


def test_nodes_and_roles_must_agree(place: Place) -> None:
    (place.path / ".venv" / "bin" / "scontrol").write_text("#!/bin/sh\necho n1\n", encoding="utf-8")
    code, said = place.run(EXIT_WITH="0")
    assert code == 2
    assert "one node for each of its 3 roles, found 1" in said
    assert place.log == []
