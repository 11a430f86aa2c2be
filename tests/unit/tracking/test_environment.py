"""What MLflow is told that a run was made with, and what it is never told."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perm_ray.config.schema import Config, TrackingConfig
from perm_ray.tracking.environment import data_digest, environment, gather, git_state, run_params, run_tags
from tests.support.mlflow_server import write_mlflow_database

SECRET = "hunter2"


def git(folder: Path, *arguments: str) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    identity = ("-c", "user.name=Ana", "-c", "user.email=ana@example.org")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, env=plain, timeout=60)


def test_a_repository_is_described_without_its_content(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a file.txt").write_text("one\ntwo\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "First")
    clean = git_state(tmp_path)
    assert clean is not None
    assert len(str(clean["sha"])) == 40
    assert (clean["dirty"], clean["changed"], clean["num_untracked"]) == (False, [], 0)
    (tmp_path / "a file.txt").write_text(f"one\n{SECRET}\nthree\n")
    (tmp_path / "new.txt").write_text(SECRET)
    dirty = git_state(tmp_path)
    assert dirty == {
        "sha": clean["sha"],
        "dirty": True,
        "changed": [{"file": "a file.txt", "added": "2", "removed": "1"}],
        "num_changed": 1,
        "num_untracked": 1,
    }


def test_outside_a_repository_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    assert git_state(tmp_path / "not-there") is None
    assert "git.sha" not in run_tags({}, None, {})


def test_the_host_is_described() -> None:
    told = environment()
    packages, host = told["packages"], told["host"]
    assert isinstance(packages, dict)
    assert isinstance(host, dict)
    assert packages["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "torch" in packages
    assert host["num_cpus"] == os.cpu_count()
    assert host["memory_gb"] > 0


def test_data_have_one_digest() -> None:
    one = {"set of training scenarios": "1" * 64, "prompt template": "2" * 64}
    assert data_digest(one) == data_digest(dict(reversed(one.items())))
    assert data_digest(one) != data_digest(one | {"prompt template": "3" * 64})


def test_a_submitted_job_knows_its_own_address() -> None:
    variables = {
        "PERM_RAY_SUBMISSION_ID": "perm-ray-7",
        "PERM_RAY_DASHBOARD_URL": f"http://me:{SECRET}@head:8265",
        "OTHER": SECRET,
    }
    tags = run_tags({"data": "1"}, {"sha": "abc", "dirty": True}, variables)
    assert tags == {
        "data.digest": data_digest({"data": "1"}),
        "git.sha": "abc",
        "mlflow.source.git.commit": "abc",
        "git.dirty": "true",
        "ray.submission_id": "perm-ray-7",
        "ray.dashboard_url": "http://<redacted>@head:8265",
    }


def test_params_are_few_and_masked() -> None:
    config = Config(
        data=dataclasses.replace(Config().data, train=f"https://me:{SECRET}@host/data.jsonl?token={SECRET}")
    )
    params = run_params(config)
    assert len(params) < 25
    assert params["judges.reception"] == "judge: builtin:smollm2-135m-instruct"
    assert SECRET not in " ".join(params.values())
    facts = gather(config, {"data": f"https://me:{SECRET}@host/"})
    assert SECRET not in json.dumps(dataclasses.asdict(facts))
    assert set(facts.documents) >= {"environment.json", "data.json"}


_TRACK = """
import sys
import time
from pathlib import Path
from perm_ray.config.load import load_config
from tests.support.fakes import fake_completion, fake_group, fake_rollout
from tests.support.tracked import TrackedSession

folder = Path(sys.argv[1])
config = load_config(folder / "config.yaml")
tracker = TrackedSession(config, folder)
tracker.start(None, {"data": "1"})
said = "see https://me:hunter2@host/a?api_key=hunter2"
rollout = fake_rollout(fake_completion("one", 0, said), {"resonation": 3.0}, 0.5, said)
for _ in range(1000):  # a busy machine may take longer to import MLflow than `finish` waits
    if tracker.run_id is not None:
        break
    time.sleep(0.1)
tracker.metrics(1, {"reward/mean": 0.5})
tracker.rollouts(10, [fake_group("one", [rollout])])
tracker.finish("FINISHED")
"""


def test_planted_secrets_are_nowhere_in_what_mlflow_stored(tmp_path: Path) -> None:
    write_mlflow_database(tmp_path / "mlflow.db")
    (tmp_path / "config.yaml").write_text(
        f"data: {{train: 'https://me:{SECRET}@host/train.jsonl?token={SECRET}'}}\n"
        f"policy: {{model: 'https://{SECRET}@host/model'}}\n"
        "models: {theirs: {base_url: 'https://judge/v1', model: m, api_key_env: JUDGE_KEY}}\n"
    )
    environment = {
        **os.environ,
        "JUDGE_KEY": SECRET,
        "MLFLOW_TRACKING_PASSWORD": SECRET,
        "PERM_RAY_SUBMISSION_ID": "job-7",
        "PERM_RAY_DASHBOARD_URL": f"http://me:{SECRET}@head:8265",
    }
    subprocess.run([sys.executable, "-c", _TRACK, str(tmp_path)], check=True, timeout=120, env=environment)
    own = {tmp_path / "config.yaml", tmp_path / "samples" / "step_000010.jsonl"}  # of the run directory
    stored = [path for path in tmp_path.rglob("*") if path.is_file() and path not in own]
    stored += list(tmp_path.glob("mlartifacts/**/config.yaml"))
    assert {"mlflow.db", "data.json", "step_000010.json", "environment.json"} <= {p.name for p in stored}
    assert [path for path in stored if SECRET.encode() in path.read_bytes()] == []
    assert b"job-7" in (tmp_path / "mlflow.db").read_bytes()


def test_a_registered_models_name_is_checked() -> None:
    with pytest.raises(
        ValueError, match=r"tracking.register_model must be null, or a name without '/' and ':'"
    ):
        TrackingConfig(register_model="a/b")
    assert TrackingConfig(register_model="kind-policy").register_model == "kind-policy"
