"""A policy in MLflow's model registry, and which version is the champion."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from perm_ray.config.schema import Config, TrackingConfig
from perm_ray.tracking.mlflow_client import TrackedRun, connect
from perm_ray.tracking.mlflow_sender import MlflowSender
from perm_ray.tracking.model_registry import Candidate, Registered, measure_of, register_policy
from perm_ray.types import Message
from tests.support.mlflow_server import write_mlflow_database
from tests.support.tiny_model import write_tiny_model

CONFIG = Config(tracking=TrackingConfig(register_model="kind-policy"))
CONTENTS = {"set of held-out scenarios": "1", "rubric of reception": "2", "set of training scenarios": "3"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("trained") / "policy")


def candidate(policy: Path, reward: float | None, measure: str = "m1") -> Candidate:
    return Candidate(policy, "# A card\n", 8, reward, measure, (Message("user", "Look at it!"),))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The directory of a run that is finished and tracked in its own database."""
    write_mlflow_database(tmp_path / "mlflow.db")
    tracker = MlflowSender(CONFIG.tracking, "night", tmp_path)
    tracker.start(CONFIG, None, CONTENTS)
    tracker.finish("FINISHED")
    return tmp_path


def test_versions_and_the_champion(directory: Path, policy: Path) -> None:
    def registered(reward: float | None, measure: str = "m1") -> Registered:
        found = register_policy(CONFIG, directory, candidate(policy, reward, measure))
        assert found is not None
        return found

    client = connect(f"sqlite:///{directory}/mlflow.db")

    def champion() -> str:
        return str(client.get_model_version_by_alias("kind-policy", "champion").version)

    unmeasured = registered(None)
    assert (unmeasured.version, unmeasured.champion) == ("1", False)
    first = registered(0.5)
    assert str(first) == "kind-policy version 2, champion (the first with a held-out reward: 0.500)"
    worse = registered(0.25)
    assert str(worse) == "kind-policy version 3 (held-out reward 0.250, 0.500 of version 2)"
    other = registered(0.9, measure="m2")
    assert (other.champion, champion()) == (False, "2")
    assert other.why == "version 2 was measured with other scenarios, judges or rewards"
    assert registered(0.75).champion
    assert champion() == "5"

    version = client.get_model_version("kind-policy", "5")
    tracked = TrackedRun.read(directory)
    assert tracked is not None
    assert (version.run_id, version.status) == (tracked.run_id, "READY")
    assert version.tags == {"heldout_reward": "0.75", "heldout_measure": "m1", "step": "8"}
    assert client.get_run(tracked.run_id).info.status == "FINISHED"
    assert not list(directory.glob(".model-*"))
    folder = Path(str(version.source).removeprefix("file://"))
    model_id = folder.parent.name
    files = {file.path for file in client.list_logged_model_artifacts(model_id)}
    assert files >= {"MLmodel", "README.md", "input_example.json", "model", "requirements.txt"}

    from mlflow.transformers import load_model

    assert folder.is_relative_to(directory / "mlartifacts" / "models")
    described = (folder / "MLmodel").read_text()
    assert "signature:" in described
    assert "llm/v1/chat" in described
    assert (folder / "README.md").read_text() == "# A card\n"
    example = json.loads((folder / "input_example.json").read_text())
    assert example["messages"] == [{"role": "user", "content": "Look at it!"}]
    loaded: Any = load_model(str(folder))
    assert len(loaded.tokenizer.encode("<|im_start|>")) == 1


def test_a_registry_that_is_away_is_one_warning(
    tmp_path: Path, policy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert register_policy(CONFIG, tmp_path, candidate(policy, 0.5)) is None
    TrackedRun("0" * 32, "1", "http://127.0.0.1:9").write(tmp_path)
    away = TrackingConfig(register_model="kind-policy", mlflow_uri="http://me:hunter2@127.0.0.1:9")
    assert register_policy(Config(tracking=away), tmp_path, candidate(policy, 0.5)) is None
    never_tracked, out_of_reach = (record.getMessage() for record in caplog.records)
    assert "(it does not have the run)" in never_tracked
    assert f"the policy is in {policy}." in out_of_reach
    assert "hunter2" not in out_of_reach


def test_nothing_is_registered_unless_asked_for(
    tmp_path: Path, policy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert register_policy(Config(), tmp_path, candidate(policy, 0.5)) is None
    assert caplog.records == []


def test_what_a_reward_was_measured_with() -> None:
    measure = measure_of(CONFIG, CONTENTS)
    assert measure == measure_of(CONFIG, CONTENTS | {"set of training scenarios": "9"})
    assert measure != measure_of(CONFIG, CONTENTS | {"rubric of reception": "9"})
    rewards = dataclasses.replace(CONFIG.rewards, bystander_coef=0.1)
    assert measure != measure_of(dataclasses.replace(CONFIG, rewards=rewards), CONTENTS)
    assert measure == measure_of(
        dataclasses.replace(CONFIG, run=dataclasses.replace(CONFIG.run, seed=1)), CONTENTS
    )
