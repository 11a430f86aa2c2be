"""MLflow itself, on sqlite in a temporary directory; and a server that is not there."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from perm_ray.config.schema import Config, TrackingConfig
from perm_ray.tracking.environment import run_params
from perm_ray.tracking.mlflow_client import TrackedRun, connect, open_experiment, tracking_uri
from perm_ray.tracking.mlflow_run import metric_name
from perm_ray.tracking.mlflow_sender import MlflowSender, is_behind, open_tracker
from perm_ray.types import RolloutGroup
from tests.support.fakes import fake_completion, fake_group, fake_rollout
from tests.support.mlflow_server import write_mlflow_database
from tests.support.tracked import TrackedSession

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Trace

CONTENTS = {"set of training scenarios": "5" * 64}
SCORES: dict[str, float | None] = {"resonation": 3.0, "reception": 4.5}
AWAY = TrackingConfig(mlflow_uri="http://me:hunter2@127.0.0.1:9")  # port 9 (discard) is closed


def groups(reward: float, text: str | None = None) -> list[RolloutGroup]:
    rollouts = [
        fake_rollout(fake_completion("one", 0, text), SCORES, reward, "as https://me:hunter2@host/ says"),
        fake_rollout(fake_completion("one", 1), SCORES | {"reception": None}, None),
    ]
    return [fake_group("one", rollouts)]


def start(directory: Path, config: Config, resume_id: str | None = None) -> TrackedSession:
    tracker = TrackedSession(config, directory)
    tracker.start(resume_id, CONTENTS)
    return tracker


def client_of(directory: Path) -> MlflowClient:
    return connect(f"sqlite:///{directory}/mlflow.db")


def tracked_id(directory: Path) -> str:
    tracked = TrackedRun.read(directory)
    assert tracked is not None
    return tracked.run_id


def artifact(directory: Path, run_id: str, name: str) -> str:
    return (directory / "mlartifacts" / run_id / "artifacts" / name).read_text()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_mlflow_database(tmp_path / "mlflow.db")
    return tmp_path


# ---- a run ----------------------------------------------------------------------------------


def test_a_run_its_resume_and_its_end_states(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Config()
    tracker = start(directory, config)
    began_s = time.monotonic()
    tracker.metrics(1, {"reward/mean": 0.1, "judge/resonation/mean": 3.0, "loss": math.nan})
    tracker.metrics(2, {"reward/mean": 0.2})
    assert time.monotonic() - began_s < 0.1
    tracker.finish("KILLED")
    run_id = tracked_id(directory)
    assert tracker.run_id == run_id
    client = client_of(directory)
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("KILLED", "night")
    assert run.data.metrics == {"reward/mean": 0.2, "judge/resonation/mean": 3.0}
    assert run.data.params == run_params(config)
    assert artifact(directory, run_id, "config.yaml").startswith("run:\n")
    assert json.loads(artifact(directory, run_id, "data.json"))["contents"] == CONTENTS
    assert "python" in json.loads(artifact(directory, run_id, "environment.json"))["packages"]
    assert len(run.data.tags["data.digest"]) == 12

    trainer = dataclasses.replace(config.trainer, lr=1e-3)  # MLflow refuses a parameter that changes
    resumed = start(directory, dataclasses.replace(config, trainer=trainer), run_id)
    resumed.metrics(3, {"reward/mean": 0.3})
    resumed.finish("FINISHED")
    assert resumed.run_id == run_id
    run = client.get_run(run_id)
    assert (run.info.status, run.data.params["trainer.lr"]) == ("FINISHED", "1e-06")
    assert json.loads(run.data.tags["resume.changed_params"]) == {"trainer.lr": ["1e-06", "0.001"]}
    history = client.get_metric_history(run_id, "reward/mean")
    assert sorted((point.step, point.value) for point in history) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert caplog.records == []
    assert not is_behind(directory)


def test_a_run_that_is_gone_is_begun_anew(directory: Path) -> None:
    client = client_of(directory)
    deleted = client.create_run(open_experiment(client, Config().tracking, directory)).info.run_id
    client.delete_run(deleted)
    for lost in (deleted, "0" * 32):
        tracker = start(directory, Config(), lost)
        tracker.metrics(7, {"reward/mean": 0.5})
        tracker.finish("FINISHED")
        assert tracker.run_id not in (None, lost)
        run = client.get_run(str(tracker.run_id))
        assert run.data.tags["resume.lost_run"] == lost
        assert run.data.metrics == {"reward/mean": 0.5}


def test_no_name_of_a_metric_is_in_the_way_of_others(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tags = {"no[such]name": 1.0, "slice/culture/../reward": 1.0, f"slice/culture/{'x' * 300}/reward": 1.0}
    tracker = start(directory, Config())
    tracker.metrics(1, tags | {"slice/culture/./reward": 1.0})
    tracker.metrics(2, {"reward/mean": 0.2})
    tracker.metrics(3, {f"slice/{number}": 1.0 for number in range(2500)})  # more than one request holds
    tracker.finish("FINISHED")
    run = client_of(directory).get_run(tracked_id(directory))
    assert run.info.status == "FINISHED"
    assert len(run.data.metrics) == 2505
    assert {metric_name(name) for name in tags} <= run.data.metrics.keys()
    assert caplog.records == []


# ---- rollouts -------------------------------------------------------------------------------


def traces(directory: Path) -> list[Trace]:
    client, run_id = client_of(directory), tracked_id(directory)
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_traces(locations=[experiment], run_id=run_id)
    return sorted(found, key=lambda trace: (trace.info.tags["step"], trace.info.tags["index"]))


def test_rollouts_become_traces_with_a_feedback_from_every_judge(directory: Path) -> None:
    tracker = start(directory, Config())
    tracker.rollouts(10, groups(0.5))
    tracker.finish("FINISHED")
    good, failed = traces(directory)
    run_id = tracked_id(directory)
    assert good.info.trace_metadata["mlflow.sourceRun"] == run_id
    tags = {name: good.info.tags[name] for name in ("run", "step", "scenario_id", "index", "why")}
    assert tags == {
        "run": run_id,
        "step": "10",
        "scenario_id": "one",
        "index": "0",
        "why": "the best reward",
    }
    spans = {span.name: span for span in good.data.spans}
    assert list(spans) == ["rollout", "generate", "judge.resonation", "judge.reception"]
    assert spans["generate"].parent_id == spans["judge.reception"].parent_id == spans["rollout"].span_id
    assert spans["generate"].inputs == {"messages": [{"role": "user", "content": "Look at it!"}]}
    assert spans["generate"].outputs["content"].startswith("# Analysis")
    judge = spans["judge.reception"]
    assert judge.end_time_ns is not None
    assert (judge.end_time_ns - judge.start_time_ns, judge.outputs["score"]) == (250_000_000, 4.5)
    assert judge.attributes["mlflow.chat.tokenUsage"] == {
        "input_tokens": 100,
        "output_tokens": 7,
        "total_tokens": 107,
        "cache_read_input_tokens": 50,
    }
    told = {entry.name: entry for entry in good.info.assessments}
    assert {name: entry.feedback.value for name, entry in told.items() if entry.feedback} == SCORES
    assert (told["reception"].source.source_type, told["reception"].source.source_id) == (
        "LLM_JUDGE",
        "fake-judge",
    )
    assert told["reception"].rationale == "as https://<redacted>@host/ says"
    assert str(failed.info.state.value) == "ERROR"
    (lost,) = [entry.feedback for entry in failed.info.assessments if entry.name == "reception"]
    assert lost is not None
    assert lost.error is not None
    assert (lost.value, lost.error.error_code) == (None, "FAILED")


def table(directory: Path, step: int) -> list[dict[str, Any]]:
    content = json.loads(artifact(directory, tracked_id(directory), f"samples/step_{step:06d}.json"))
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def test_rollouts_are_in_a_table_once_also_when_a_step_is_run_again(directory: Path) -> None:
    tracker = start(directory, Config())
    tracker.rollouts(10, groups(0.5))
    tracker.rollouts(20, groups(0.7))
    tracker.finish("KILLED")
    first, second = table(directory, 20)
    assert (first["scenario_id"], first["reward"], first["reception"]) == ("one", 0.7, 4.5)
    assert (second["reward"], second["reception"], second["masked_because"]) == (
        None,
        None,
        "a judgment failed",
    )
    assert {first["trace_id"], second["trace_id"]} < {trace.info.trace_id for trace in traces(directory)}
    tag = client_of(directory).get_run(tracked_id(directory)).data.tags["mlflow.loggedArtifacts"]
    assert [entry["path"] for entry in json.loads(tag)] == [
        "samples/step_000010.json",
        "samples/step_000020.json",
    ]

    resumed = start(directory, Config(), tracked_id(directory))
    resumed.rollouts(20, groups(0.9, text="another answer, half \ud83d of it"))  # one is as it was
    resumed.finish("FINISHED")
    assert [row["reward"] for row in table(directory, 20)] == [0.9, None]
    found = traces(directory)
    assert [trace.info.tags["step"] for trace in found] == ["10", "10", "20", "20", "20"]
    assert [len(trace.info.assessments) for trace in found] == [2] * 5


# ---- no server ------------------------------------------------------------------------------


def test_an_outage_costs_one_warning_and_no_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = start(tmp_path, Config(tracking=AWAY))
    began_s = time.monotonic()
    for step in range(1, 4):
        tracker.metrics(step, {"reward/mean": 0.1})
    tracker.rollouts(10, groups(0.5))
    assert (tracker.run_id, time.monotonic() - began_s < 0.2) == (None, True)
    with caplog.at_level(logging.WARNING):
        tracker.finish("FINISHED")
    assert time.monotonic() - began_s < 20
    (record,) = caplog.records
    message = record.getMessage()
    assert "did not take 4 records, the end state among them" in message
    assert f"perm-ray train --resume {tmp_path}" in message
    assert "hunter2" not in message

    # As when the finished run is resumed, with the server there.
    write_mlflow_database(tmp_path / "mlflow.db")
    again = start(tmp_path, Config())
    again.finish("FINISHED")
    run = client_of(tmp_path).get_run(tracked_id(tmp_path))
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"reward/mean": 0.1})
    assert len(client_of(tmp_path).get_metric_history(run.info.run_id, "reward/mean")) == 3
    assert len(traces(tmp_path)) == 2
    assert not is_behind(tmp_path)


def test_a_server_that_takes_connections_and_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")  # a user's own value counts
    with socket.create_server(("127.0.0.1", 0)) as mute:
        config = TrackingConfig(mlflow_uri=f"http://127.0.0.1:{mute.getsockname()[1]}")
        tracker = start(tmp_path, Config(tracking=config))
        tracker.metrics(1, {"reward/mean": 0.1})
        began_s = time.monotonic()
        tracker.finish("FAILED")
        assert time.monotonic() - began_s < 14
    assert len(caplog.records) == 1
    assert is_behind(tmp_path)


def test_finish_without_start(tmp_path: Path) -> None:
    tracker = MlflowSender(TrackingConfig(), "night", tmp_path)
    assert tracker.run_id is None
    tracker.finish("FAILED")
    assert list(tmp_path.iterdir()) == []


def test_tracking_can_be_turned_off(tmp_path: Path) -> None:
    tracker = open_tracker(Config(tracking=TrackingConfig(mlflow=False)), "night", tmp_path, None, {})
    tracker.metrics(1, {"reward/mean": 0.1})
    tracker.rollouts(1, groups(0.5))
    tracker.finish("FINISHED")
    assert (tracker.uri, tracker.run_id, list(tmp_path.iterdir())) == (None, None, [])


def test_a_run_directory_of_any_name_holds_its_own_database(tmp_path: Path) -> None:
    folder = tmp_path / "50%20 of what?x=1 #2"
    folder.mkdir()
    client = connect(tracking_uri(TrackingConfig(), folder))
    open_experiment(client, TrackingConfig(), folder)
    assert [path.name for path in tmp_path.rglob("*.db")] == ["mlflow.db"]
    assert (folder / "mlflow.db").is_file()


def test_where_runs_go(tmp_path: Path) -> None:
    assert tracking_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(TrackingConfig(mlflow_uri="http://host:5000"), tmp_path) == "http://host:5000"
    masked = TrackingConfig(mlflow_uri="https://<redacted>@host")  # as a run's own config.yaml has it
    assert tracking_uri(masked, tmp_path) == "https://host"
