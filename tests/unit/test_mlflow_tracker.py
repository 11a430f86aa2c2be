"""MLflow itself, on sqlite in a temporary directory; and a server that is not there."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from pathlib import Path

import pytest

from perm_ray.config.schema import Config, TrackingConfig
from perm_ray.tracking.mlflow_tracker import MlflowTracker, open_tracker, run_params, tracking_uri


def test_a_run_its_resume_and_its_end_states(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Config()
    began_s = time.monotonic()
    tracker = MlflowTracker(config.tracking, "night", tmp_path)
    tracker.start(config, None)
    tracker.log_step(1, {"reward/mean": 0.1, "judge/resonation/mean": 3.0, "loss": math.nan})
    tracker.log_step(2, {"reward/mean": 0.2})
    assert time.monotonic() - began_s < 0.1  # MLflow is imported elsewhere
    run_id = tracker.run_id or tracker.run_id  # on a busy machine MLflow may need both waits
    assert run_id is not None
    tracker.finish("KILLED")

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("KILLED", "night")
    assert run.data.metrics == {"reward/mean": 0.2, "judge/resonation/mean": 3.0}
    assert run.data.params == run_params(config)
    assert (tmp_path / "mlartifacts" / run_id / "artifacts" / "config.yaml").read_text().startswith("run:\n")

    trainer = dataclasses.replace(config.trainer, lr=1e-3)  # MLflow refuses a parameter that changes
    resumed = MlflowTracker(config.tracking, "night", tmp_path)
    resumed.start(dataclasses.replace(config, trainer=trainer), run_id)
    resumed.log_step(3, {"reward/mean": 0.3})
    resumed.finish("FINISHED")
    assert resumed.run_id == run_id
    run = client.get_run(run_id)
    assert (run.info.status, run.data.params["trainer.lr"]) == ("FINISHED", "1e-06")
    history = client.get_metric_history(run_id, "reward/mean")
    assert sorted((point.step, point.value) for point in history) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert caplog.records == []


def test_an_outage_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Port 9 (discard) is closed on any machine that is set up in this century.
    config = TrackingConfig(mlflow_uri="http://me:hunter2@127.0.0.1:9")
    tracker = MlflowTracker(config, "night", tmp_path)
    tracker.start(Config(tracking=config), None)
    began_s = time.monotonic()
    for step in range(1, 4):
        tracker.log_step(step, {"reward/mean": 0.1})
    assert time.monotonic() - began_s < 0.1
    assert tracker.run_id is None
    with caplog.at_level(logging.WARNING):
        tracker.finish("FINISHED")
    assert time.monotonic() - began_s < 20
    (record,) = caplog.records
    message = record.getMessage()
    assert "did not take 3 of 3 records nor the run's end state" in message
    assert str(tmp_path / "metrics.jsonl") in message
    assert "hunter2" not in message


def test_finish_without_start(tmp_path: Path) -> None:
    tracker = MlflowTracker(TrackingConfig(), "night", tmp_path)
    assert tracker.run_id is None
    tracker.finish("FAILED")
    assert list(tmp_path.iterdir()) == []


def test_tracking_can_be_turned_off(tmp_path: Path) -> None:
    tracker = open_tracker(Config(tracking=TrackingConfig(mlflow=False)), "night", tmp_path, None)
    tracker.log_step(1, {"reward/mean": 0.1})
    tracker.finish("FINISHED")
    assert (tracker.uri, tracker.run_id, list(tmp_path.iterdir())) == (None, None, [])


def test_where_runs_go(tmp_path: Path) -> None:
    assert tracking_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(TrackingConfig(mlflow_uri="http://host:5000"), tmp_path) == "http://host:5000"
    masked = TrackingConfig(mlflow_uri="https://<redacted>@host")  # as a run's own config.yaml has it
    assert tracking_uri(masked, tmp_path) == "https://host"


def test_params_are_few_and_masked() -> None:
    config = Config(data=dataclasses.replace(Config().data, train="https://me:hunter2@host/data.jsonl"))
    params = run_params(config)
    assert len(params) < 25
    assert params["judges.reception"] == "reception: builtin:smollm2-135m-instruct"
    assert "hunter2" not in " ".join(params.values())
