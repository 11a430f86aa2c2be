"""A real MLflow server that goes away in the middle of a run and comes back on the same port."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perm_ray.config.schema import Config, TrackingConfig
from perm_ray.runs.directory import RunDirectory
from perm_ray.tracking.mlflow_client import TrackedRun, connect
from perm_ray.tracking.mlflow_sender import is_behind
from perm_ray.types import RolloutGroup
from tests.support.fakes import fake_completion, fake_group, fake_rollout
from tests.support.mlflow_server import MlflowServer
from tests.support.tracked import TrackedSession


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


def groups() -> list[RolloutGroup]:
    scores: dict[str, float | None] = {"resonation": 3.0, "reception": 4.0}
    return [
        fake_group(
            "one", [fake_rollout(fake_completion("one", index), scores, index / 4) for index in (0, 1)]
        )
    ]


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.02)


def test_all_steps_arrive_after_an_outage_and_one_warning_says_so(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(tracking=TrackingConfig(mlflow_uri=server.uri))
    tracker = TrackedSession(config, tmp_path)
    server.start()
    tracker.start(None, {"data": "1"})
    tracker.metrics(1, {"reward/mean": 0.1})
    wait_until(lambda: tracker.run_id is not None, 60)
    client = connect(server.uri)
    run_id = str(tracker.run_id)
    wait_until(lambda: client.get_run(run_id).data.metrics, 60)

    server.stop()
    with caplog.at_level(logging.WARNING):
        began_s = time.monotonic()
        for step in range(2, 8):
            tracker.metrics(step, {"reward/mean": step / 10})
        tracker.rollouts(10, groups())
        assert time.monotonic() - began_s < 0.2
        wait_until(lambda: caplog.records, 20)
        server.start()
        tracker.metrics(8, {"reward/mean": 0.8})
        wait_until(lambda: len(client.get_metric_history(run_id, "reward/mean")) == 8, 40)
        tracker.metrics(9, {"reward/mean": 0.9})
        tracker.finish("FINISHED")
    (record,) = caplog.records
    assert f"MLflow at {server.uri} is out of reach" in record.getMessage()

    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run_id, "reward/mean")
    assert sorted((point.step, point.value) for point in history) == [(n, n / 10) for n in range(1, 10)]
    found = client.search_traces(locations=[run.info.experiment_id], run_id=run_id)
    assert sorted(trace.info.tags["index"] for trace in found) == ["0", "1"]
    assert {span.name for span in found[0].data.spans} >= {"generate", "judge.reception"}
    assert [len(trace.info.assessments) for trace in found] == [2, 2]
    names = {file.path for file in client.list_artifacts(run_id)}
    assert names >= {"config.yaml", "data.json", "environment.json", "samples"}
    server.stop()


def test_a_run_that_ends_in_an_outage_is_completed_when_it_is_resumed(
    server: MlflowServer, tmp_path: Path
) -> None:
    config = Config(tracking=TrackingConfig(mlflow_uri=server.uri))
    server.start()
    first = TrackedSession(config, tmp_path)
    first.start(None, {"data": "1"})
    first.metrics(1, {"reward/mean": 0.1})
    wait_until(lambda: first.run_id is not None, 60)
    client = connect(server.uri)
    wait_until(lambda: client.get_run(str(first.run_id)).data.metrics, 60)
    server.stop()
    for step in (2, 3):
        first.metrics(step, {"reward/mean": step / 10})
    first.finish("KILLED")
    assert is_behind(tmp_path)

    server.start()
    assert client.get_run(str(first.run_id)).info.status == "RUNNING"
    RunDirectory.resume(tmp_path, "", step=2)  # the checkpoint was of step 2
    tracked = TrackedRun.read(tmp_path)
    assert tracked is not None
    second = TrackedSession(config, tmp_path)
    second.start(tracked.run_id, {"data": "1"})
    second.metrics(3, {"reward/mean": 0.31})
    second.finish("FINISHED")
    run = client.get_run(str(first.run_id))
    assert (second.run_id, run.info.status) == (first.run_id, "FINISHED")
    history = client.get_metric_history(run.info.run_id, "reward/mean")
    assert sorted((point.step, point.value) for point in history) == [(1, 0.1), (2, 0.2), (3, 0.31)]
    server.stop()
