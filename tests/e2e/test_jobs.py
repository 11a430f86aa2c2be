"""The walk of an operator: a Ray cluster of three nodes with a token, an MLflow server, and a run as a job.

Submit, status, logs, stop, resume and read the result from MLflow over HTTP, each by the command that the
README names. The rollout engine lives on another node than the trainer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from perm_ray.testing.local_services import Cluster, Node, mlflow_server, ray_cluster
from perm_ray.testing.tiny_model import write_tiny_model
from perm_ray.testing.tiny_run import tiny_run

pytestmark = pytest.mark.timeout(900)

SECRET = "sk-planted-0123456789"
NODES = (
    Node("127.0.0.2", num_cpus=3, resources={"head": 1}),
    Node("127.0.0.3", resources={"rollout": 1}),
    Node("127.0.0.4", resources={"trainer": 1}),
)


@dataclass(frozen=True)
class Place:
    """A cluster, a server, and a configuration for both."""

    cluster: Cluster
    mlflow: str
    config: Path
    runs: Path

    def perm_ray(
        self, verb: str, *arguments: str, env: Mapping[str, str] | None = None, code: int = 0
    ) -> str:
        """Run `perm-ray VERB --address ...` as a user at the cluster does; returns what it prints."""
        command = [
            sys.executable,
            "-m",
            "pipelines.cli",
            verb,
            "--address",
            self.cluster.dashboard,
            *arguments,
        ]
        done = subprocess.run(
            command,
            env={**self.cluster.environment, **(env or {})},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == code, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    def steps(self, run: str) -> list[dict[str, float]]:
        file = self.runs / run / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("jobs")
    model = write_tiny_model(folder / "tiny")
    config = folder / "job.yaml"
    text = tiny_run(model, folder / "runs")
    # The judges are where the trainer is, the rollout engine is not.
    text = text.replace("engine: {max_model_len", "engine: {resources: {rollout: 1}, max_model_len")
    text = text.replace("trainer: {", "trainer: {resources: {trainer: 1}, ")
    config.write_text(text)
    with mlflow_server(folder) as mlflow, ray_cluster(NODES, folder) as cluster:
        yield Place(cluster, mlflow, config, folder / "runs")


def wait_for_steps(place: Place, run: str, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(place.steps(run)) < count:
        assert time.monotonic() < deadline, place.perm_ray("logs", run)
        assert "FAILED" not in place.perm_ray("status", run), place.perm_ray("logs", run)
        time.sleep(1)


def test_submit_follow_stop_resume_and_read(place: Place) -> None:
    settings = ["run.name=walk", f"tracking.mlflow_uri={place.mlflow}", "checkpoint.every=1"]
    given = ["--config", str(place.config), *settings]
    env = {"JUDGE_KEY": SECRET}
    said = place.perm_ray("submit", *given, "--env", "JUDGE_KEY", "run.steps=1000", env=env)
    assert "Submitted walk" in said
    wait_for_steps(place, "walk", 1)
    nodes = actor_nodes(place)
    assert nodes["RolloutActor"] != nodes["TrainerRank"]
    status = place.perm_ray("status", "walk")
    assert "RUNNING" in status
    assert "mlflow_run_id" in status
    assert "walk" in place.perm_ray("status")

    said = place.perm_ray("submit", *given, "run.steps=2", code=2)
    assert "has a job walk already" in said

    said = place.perm_ray("stop", "walk")
    assert "STOPPED" in said
    assert f"--resume {place.runs / 'walk'}" in said
    assert place.perm_ray("stop", "walk").endswith("has ended already: STOPPED.\n")
    assert json.loads((place.runs / "walk" / "summary.json").read_text())["status"] == "KILLED"
    done = len(place.steps("walk"))
    last = max(done, int((place.runs / "walk" / "checkpoints" / "latest").read_text().strip()[-6:])) + 1

    resume = ["--resume", str(place.runs / "walk"), "--follow", f"run.steps={last}"]
    said = place.perm_ray("submit", *given, *resume)
    assert "FINISHED" in said
    assert "walk-resume-1: SUCCEEDED" in said
    assert [row["step"] for row in place.steps("walk")] == list(range(1, last + 1))

    client = MlflowClient(tracking_uri=place.mlflow)
    (run_id,) = {line.split()[1] for line in status.splitlines() if line.startswith("mlflow_run_id")}
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert {point.step for point in client.get_metric_history(run_id, "reward/mean")} == set(
        range(1, last + 1)
    )

    seen = "".join([place.perm_ray("status", "walk"), place.perm_ray("logs", "walk"), raw_jobs(place)])
    files = [path for path in (place.runs / "walk").rglob("*") if path.suffix in (".json", ".jsonl", ".yaml")]
    assert SECRET not in seen + "".join(path.read_text() for path in files)


def test_a_wrong_token_and_a_missing_head_get_a_sentence(place: Place) -> None:
    said = place.perm_ray("status", env={"RAY_AUTH_TOKEN": "0" * 64}, code=2)
    assert "does not accept the token" in said
    elsewhere = Place(Cluster("http://127.0.0.9:9", place.cluster.environment), "", place.config, place.runs)
    assert "nothing answers at http://127.0.0.9:9" in elsewhere.perm_ray("status", code=2)


def test_what_the_cluster_lacks_is_said_before_anything_is_sent(place: Place) -> None:
    given = ["--config", str(place.config), "run.name=large", "rollout.engine.replicas=2"]
    said = place.perm_ray("submit", *given, code=2)
    assert "2 of 'rollout' (1 found)" in said
    assert "large" not in place.perm_ray("status")


def test_the_doctor_finds_a_cluster_with_a_token(place: Place) -> None:
    uri = f"tracking.mlflow_uri={place.mlflow}"
    said = place.perm_ray("doctor", "--config", str(place.config), uri)
    assert "asks for a token" in said
    assert "3 nodes" in said
    assert f"{place.mlflow} answers" in said
    said = place.perm_ray("doctor", "--config", str(place.config), env={"RAY_AUTH_TOKEN": "0" * 64}, code=1)
    assert "does not take this token" in said


def actor_nodes(place: Place) -> dict[str, str]:
    """The node of each living actor, by its class."""
    script = (
        "import json\nfrom ray.util.state import list_actors\n"
        f"found = list_actors(address={place.cluster.dashboard!r}, filters=[('state', '=', 'ALIVE')])\n"
        "print(json.dumps({actor.class_name: actor.node_id for actor in found}))"
    )
    return json.loads(in_cluster(place, script))


def raw_jobs(place: Place) -> str:
    """Everything that the cluster tells about its jobs."""
    script = (
        "from ray.job_submission import JobSubmissionClient\n"
        f"print([job.dict() for job in JobSubmissionClient({place.cluster.dashboard!r}).list_jobs()])"
    )
    return in_cluster(place, script)


def in_cluster(place: Place, script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=dict(place.cluster.environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=os.fspath(place.runs),
    )
    return done.stdout.splitlines()[-1]
