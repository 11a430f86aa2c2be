"""What operating costs: a job's start and stop, tracking over HTTP, and the report of a long run.

On two nodes and an MLflow server of this machine, in a network namespace that only they are in, with the tiny
random model: engines start and step as they do with any model, and the costs measured are beside them.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.report_page import measure_report
from perm_ray.config.schema import Config
from perm_ray.errors import RunError, UserError
from tests.support.local_services import (
    Cluster,
    Node,
    mlflow_server,
    one_namespace,
    ray_cluster,
    why_no_namespaces,
)
from tests.support.tiny_model import write_tiny_model
from tests.support.tiny_run import tiny_run

DESCRIPTION = "Operating: jobs, tracking, the report"
CONFIG = "local.yaml"
ROUNDS, TRACKING_ROUNDS, STEPS = 2, 4, 30
SETTLING_STEPS = 2  # of each run, which compile and warm up
WAIT_S = 300.0


def measure(config: Config) -> dict[str, float | list[float]]:
    """`submit_to_running_s`: from the command until Ray says RUNNING; `stop_to_checkpointed_s`: from the
    command, in the middle of a step, until the job has ended with its checkpoint on the disk;
    `tracking_overhead_share`: how much longer a step takes with MLflow over HTTP than without. Medians of
    rounds, in which the two take turns at being first.

    The configuration is not used: the run is the smallest there is.
    """
    del config
    reason = why_no_namespaces()
    if reason is not None:
        raise UserError(
            f"This benchmark needs a network namespace for its cluster, and {reason}: run it as root."
        )
    figures: dict[str, float | list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="perm-ray-operations-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        config_file = folder / "tiny.yaml"
        config_file.write_text(tiny_run(write_tiny_model(folder / "tiny"), folder / "runs"), encoding="utf-8")
        with ExitStack() as stack:
            head, other = stack.enter_context(one_namespace(2))
            mlflow = stack.enter_context(mlflow_server(folder, head))
            cluster = stack.enter_context(ray_cluster((Node(head, 3), Node(other, 3)), folder))
            figures |= _jobs(_Operator(cluster, config_file, folder / "runs", mlflow))
    figures |= measure_report()
    return figures


@dataclass(frozen=True)
class _Operator:
    """Who types the commands."""

    cluster: Cluster
    config: Path
    runs: Path
    mlflow: str

    def perm_ray(self, verb: str, *arguments: str) -> str:
        """Run a verb at the cluster; returns what it prints."""
        at = ["--address", self.cluster.dashboard]
        done = self.cluster.run("-m", "perm_ray.cli.main", verb, *at, *arguments)
        if done.returncode != 0:
            raise RunError(f"perm-ray {verb} failed: {(done.stdout + done.stderr)[-2000:]}")
        return done.stdout

    def submit(self, name: str, steps: int, tracked: bool, *options: str) -> None:
        """Submit the tiny run, with MLflow over HTTP or without."""
        tracking = f"tracking.mlflow_uri={self.mlflow}" if tracked else "tracking.mlflow=false"
        settings = [f"run.name={name}", f"run.steps={steps}", "evaluation.num_scenarios=0", tracking]
        self.perm_ray("submit", "--config", str(self.config), *settings, *options)

    def is_running(self, name: str) -> bool:
        return "RUNNING" in self.perm_ray("status", name)

    def has_settled(self, name: str) -> bool:
        """Whether the run is past its first steps."""
        return len(self.step_times(name)) >= SETTLING_STEPS

    def step_times(self, name: str) -> list[float]:
        """Seconds of each finished step."""
        file = self.runs / name / "metrics.jsonl"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return [json.loads(line)["time/step_s"] for line in text.splitlines() if line.endswith("}")]


def _jobs(operator: _Operator) -> dict[str, float | list[float]]:
    starts, stops = [], []
    for number in range(ROUNDS):
        name = f"stopped-{number}"
        began = time.monotonic()
        operator.submit(name, 10_000, False)
        _until(functools.partial(operator.is_running, name), "run")
        starts.append(time.monotonic() - began)
        _until(functools.partial(operator.has_settled, name), "make its first steps")
        began = time.monotonic()
        operator.perm_ray("stop", name)
        stops.append(time.monotonic() - began)
        if not (operator.runs / name / "checkpoints" / "latest").exists():
            raise RunError(f"{name} was stopped and has no checkpoint.")
        _say(f"submit to running {starts[-1]:.1f} s, stop to checkpointed {stops[-1]:.1f} s")
    step_s: dict[bool, list[float]] = {True: [], False: []}
    for number in range(TRACKING_ROUNDS):
        for tracked in (False, True) if number % 2 == 0 else (True, False):
            name = f"{'tracked' if tracked else 'plain'}-{number}"
            operator.submit(name, STEPS, tracked, "--follow")
            step_s[tracked].append(median(operator.step_times(name)[SETTLING_STEPS:]))
        _say(f"a step {step_s[False][-1]:.3f} s without tracking, {step_s[True][-1]:.3f} s with")
    shares = [with_ / without - 1 for with_, without in zip(step_s[True], step_s[False], strict=True)]
    return {
        "submit_to_running_s": median(starts),
        "submit_to_running_s, rounds": starts,
        "stop_to_checkpointed_s": median(stops),
        "stop_to_checkpointed_s, rounds": stops,
        "tracking_overhead_share": median(shares),
        "tracking_overhead_share, rounds": shares,
        "step_s": median(step_s[False]),
    }


def _until(holds: Callable[[], bool], doing: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > deadline:
            raise RunError(f"A job did not {doing} within {WAIT_S:.0f} s.")
        time.sleep(0.2)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
