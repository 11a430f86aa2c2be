"""The package as a library: what a researcher tries in the first hour, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.program import environment
from tests.support.tiny_run import tiny_run

ROOT = Path(__file__).parents[2]

# Ray is imported first, before anybody has set its authentication, and the program is not in the main thread:
# neither may matter.
PROGRAM = """
import ipaddress
import sys
import threading

import psutil
import ray

import perm_ray


def listening():
    # Addresses other than loopback that this process or a child of it takes connections at.
    found = []
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        for connection in process.net_connections(kind="tcp"):
            address = ipaddress.ip_address(connection.laddr.ip)
            address = getattr(address, "ipv4_mapped", None) or address
            if connection.status == psutil.CONN_LISTEN and not address.is_loopback:
                found.append((process.name(), str(address)))
    return found


class Longer:
    perspectives = {"longer": perm_ray.Perspective("longer", "empathy", "response", perm_ray.Scale(0, 9))}

    def judge(self, items):
        for item in items:
            text = item.sections.response or ""
            yield item, {"longer": perm_ray.Judgment("longer", "ok", score=float(min(9, len(text))))}


def program():
    config = perm_ray.load_config(sys.argv[1])
    with perm_ray.Judges(config) as judges:
        verdict = judges.score(persona="Ana, 41, a nurse", scenario="She was passed over.",
                               query="I should be happy for Rui.", response="You can be both.")
        print("beyond loopback", listening())
    print("score", verdict.reward.value, verdict["expression"].score, verdict["resonation"].status)
    asked = []

    def reward(judgments):
        asked.append(judgments["longer"].score)
        return 1.0 + len(asked) % 2

    run = perm_ray.train(config, steps=1, reward=reward, judges=Longer())
    print("trained", len(asked), run.summary["metrics"]["reward/mean"]["first"], run.policy)


thread = threading.Thread(target=program)
thread.start()
thread.join()
"""


@pytest.mark.ray
def test_judges_and_training_from_python(tiny_model: Path, tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_run(tiny_model, tmp_path / "runs", mlflow=False))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(config)],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=ROOT,
        check=False,
        env=environment(),
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert "beyond loopback []" in done.stdout.splitlines(), done.stdout
    (scored,) = [line for line in lines if line[:1] == ["score"]]
    assert float(scored[1]) <= 1.0, done.stderr
    assert 1.0 <= float(scored[2]) <= 5.0
    assert scored[3] == "skipped"  # there was no analysis
    (trained,) = [line for line in lines if line[:1] == ["trained"]]
    assert int(trained[1]) == 2 + 6 + 2  # held-out before, one step of 2 x 3, held-out after
    assert float(trained[2]) == 1.5
    assert (Path(trained[3]) / "model.safetensors").is_file()
