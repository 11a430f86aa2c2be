"""A run as a job of a Ray cluster with a token, beside an MLflow server, by the commands of the README.

Three nodes, each with a network of its own: what one sends another crosses it. Skipped, and it is said, where
this machine allows no network namespaces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.local_services import (
    Cluster,
    Node,
    mlflow_server,
    namespaces,
    ray_cluster,
    why_no_namespaces,
)
from tests.support.tiny_model import write_tiny_model
from tests.support.tiny_run import tiny_run

SECRET = "sk-planted-0123456789"
NO_NAMESPACES = why_no_namespaces()
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(NO_NAMESPACES is not None, reason=str(NO_NAMESPACES)),
]


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
        at = ["--address", self.cluster.dashboard]
        done = self.cluster.run("-m", "perm_ray.cli.main", verb, *at, *arguments, env=env)
        assert done.returncode == code, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    def python(self, script: str) -> Any:
        """The JSON that a script prints which runs at the head."""
        done = self.cluster.run("-c", script)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    def steps(self, run: str) -> list[dict[str, float]]:
        file = self.runs / run / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def write_config(folder: Path) -> Path:
    """The smallest run, whose rollout engine is on one node and whose trainer on another."""
    text = tiny_run(write_tiny_model(folder / "tiny"), folder / "runs")
    text = text.replace("engine: {max_model_len", "engine: {resources: {rollout: 1}, max_model_len")
    text = text.replace("trainer: {", "trainer: {resources: {trainer: 1}, ")
    config = folder / "job.yaml"
    config.write_text(text)
    return config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("jobs")
    config = write_config(folder)
    with namespaces(3) as (head, second, third):
        nodes = (Node(head, 3), Node(second, 2, {"rollout": 1}), Node(third, 2, {"trainer": 1}))
        with mlflow_server(folder, head) as mlflow, ray_cluster(nodes, folder) as cluster:
            yield Place(cluster, mlflow, config, folder / "runs")


def test_a_job_on_three_nodes_is_read_from_mlflow(place: Place) -> None:
    settings = ["run.name=three", "run.steps=2", f"tracking.mlflow_uri={place.mlflow}"]
    given = ["--config", str(place.config), *settings]
    said = place.perm_ray("submit", *given, "--env", "JUDGE_KEY", "--follow", env={"JUDGE_KEY": SECRET})
    assert "Submitted three" in said
    assert "three: SUCCEEDED" in said
    assert "rollout engine: 10.77.0.2" in said
    assert "trainer rank: 10.77.0.3" in said  # so that the weights crossed a network
    assert [(row["step"], row["sync/version"]) for row in place.steps("three")] == [(1, 1), (2, 2)]

    status = place.perm_ray("status", "three")
    (run_id,) = {line.split()[1] for line in status.splitlines() if line.startswith("mlflow_run_id")}
    tracked = place.python(
        "import json\nfrom mlflow import MlflowClient\n"
        f"client = MlflowClient(tracking_uri={place.mlflow!r})\n"
        f"run = client.get_run({run_id!r})\n"
        f"points = client.get_metric_history({run_id!r}, 'reward/mean')\n"
        "print(json.dumps([run.info.status, run.data.tags, sorted({p.step for p in points})]))"
    )
    state, tags, steps = tracked
    assert (state, steps) == ("FINISHED", [1, 2])
    assert tags["ray.submission_id"] == "three"
    assert tags["ray.dashboard_url"] == place.cluster.dashboard
    assert len(tags["data.digest"]) == 12

    assert "has a job three already" in place.perm_ray("submit", *given, code=2)
    assert place.perm_ray("stop", "three").endswith("has ended already: SUCCEEDED.\n")

    seen = "".join([status, place.perm_ray("logs", "three"), raw_jobs(place), json.dumps(tags)])
    files = [
        path for path in (place.runs / "three").rglob("*") if path.suffix in (".json", ".jsonl", ".yaml")
    ]
    assert SECRET not in seen + "".join(path.read_text() for path in files)


def test_an_ablation_is_jobs_and_only_what_is_missing_is_sent(place: Place) -> None:
    file, out = place.config.parent / "variants.yaml", place.runs.parent / "ablation"
    file.write_text(f"base: {place.config}\nseeds: [1]\nvariants: {{mean: [rewards.combine=mean]}}\n")
    given = (str(file), "run.steps=1", "tracking.mlflow=false", "--out", str(out), "--jobs", "2")
    said = place.perm_ray("ablate", *given)
    jobs = place.perm_ray("status")
    assert "mean-seed1" in jobs
    found = json.loads((out / "evaluation.json").read_text())
    assert [each["model"] for each in found["models"]] == ["before", "mean"]
    again = place.perm_ray("ablate", *given)
    assert again.count("finished before") == 1
    assert "finished before" not in said
    assert place.perm_ray("status") == jobs


def test_a_wrong_token_and_a_missing_head_get_a_sentence(place: Place) -> None:
    said = place.perm_ray("status", env={"RAY_AUTH_TOKEN": "0" * 64}, code=2)
    assert "does not accept the token" in said
    elsewhere = replace(place, cluster=replace(place.cluster, dashboard="http://127.0.0.9:9"))
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


def raw_jobs(place: Place) -> str:
    """Everything that the cluster tells about its jobs."""
    return place.python(
        "import json\nfrom ray.job_submission import JobSubmissionClient\n"
        f"jobs = JobSubmissionClient({place.cluster.dashboard!r}).list_jobs()\n"
        "print(json.dumps(str([job.dict() for job in jobs])))"
    )
