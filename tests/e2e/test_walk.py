"""The walk of an operator, `cluster/local/walk.sh`: two nodes and an MLflow server, on loopback alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.local_services import one_namespace, why_no_namespaces
from tests.support.program import environment
from tests.support.tiny_model import write_tiny_model
from tests.support.tiny_run import tiny_run

NO_NAMESPACES = why_no_namespaces()


@pytest.mark.timeout(900)
@pytest.mark.skipif(NO_NAMESPACES is not None, reason=str(NO_NAMESPACES))
def test_the_walk_from_nothing_to_a_report_and_back_down(tmp_path: Path) -> None:
    """`cluster/local/walk.sh`, as it is, where nothing but its own processes can be reached."""
    config = tmp_path / "job.yaml"
    config.write_text(tiny_run(write_tiny_model(tmp_path / "tiny"), tmp_path / "runs"))
    commands = tmp_path / "bin"  # the command line of this source tree, whatever is installed
    commands.mkdir()
    (commands / "perm-ray").write_text(f'#!/bin/sh\nexec {sys.executable} -m perm_ray.cli.main "$@"\n')
    (commands / "perm-ray").chmod(0o755)
    path = f"{commands}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with one_namespace(1) as (here,):
        done = subprocess.run(
            [*here.prefix, "bash", "cluster/local/walk.sh", str(config), str(tmp_path / "walk")],
            env={**environment(), "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    said = done.stdout
    assert done.returncode == 0, said[-4000:] + done.stderr[-4000:]
    for words in (
        "asks for a token",
        "Submitted walk",
        "RUNNING",
        "walk: STOPPED",
        "walk-resume-1: SUCCEEDED",
    ):
        assert words in said
    run = tmp_path / "walk" / "runs" / "walk"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert json.loads((run / "summary.json").read_text())["status"] == "FINISHED"
    assert "<title>" in (run / "report.html").read_text()
    assert (run / "policy" / "model.safetensors").exists()
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])
    ]
