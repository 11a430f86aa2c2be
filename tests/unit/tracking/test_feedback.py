"""What people said in MLflow comes back as rated replies that a calibration reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from perm_ray.cli.main import main
from perm_ray.config.load import dump_config
from perm_ray.config.schema import Config
from perm_ray.errors import DataError, RunError
from perm_ray.evaluation.calibration.labels import read_labels
from perm_ray.tracking.feedback import find_run, pull_feedback
from perm_ray.tracking.mlflow_client import TrackedRun, connect, connect_tracing
from perm_ray.types import Scale, Sections
from tests.support.fakes import fake_completion, fake_group, fake_rollout
from tests.support.mlflow_server import write_mlflow_database
from tests.support.tracked import TrackedSession

SCORES: dict[str, float | None] = {"resonation": 3.0, "reception": 4.5}


@pytest.fixture
def tracked(tmp_path: Path) -> tuple[Path, TrackedRun]:
    """A run directory whose three rollouts are in MLflow; the third has no response section."""
    write_mlflow_database(tmp_path / "mlflow.db")
    (tmp_path / "config.yaml").write_text(dump_config(Config()))
    rollouts = [fake_rollout(fake_completion("one", index), SCORES, index / 4) for index in range(3)]
    rollouts[2] = replace(rollouts[2], sections=Sections("She is proud.", None))
    tracker = TrackedSession(Config(), tmp_path)
    tracker.start(None, {})
    tracker.rollouts(10, [fake_group("one", rollouts)])
    tracker.finish("FINISHED")
    run = TrackedRun.read(tmp_path)
    assert run is not None
    return tmp_path, run


def say(
    run: TrackedRun, index: int, name: str, value: float | str, rater: str, why: str | None = None
) -> str:
    """What MLflow's UI does when somebody rates; returns the feedback's id."""
    from mlflow.entities import AssessmentSource, Feedback

    found = connect(run.uri).search_traces(
        locations=[run.experiment_id], run_id=run.run_id, filter_string=f"tags.index = '{index}'"
    )
    trace_id = found[0].info.trace_id
    feedback = Feedback(name=name, value=value, source=AssessmentSource("HUMAN", rater), rationale=why)
    logged = connect_tracing(run.uri).log_assessment(trace_id, feedback)
    return f"{trace_id} {logged.assessment_id}"


def test_feedback_becomes_rated_replies(
    tracked: tuple[Path, TrackedRun], capsys: pytest.CaptureFixture[str]
) -> None:
    directory, run = tracked
    assert main(["feedback", "pull", str(directory)]) == 0
    assert "Nobody has given feedback" in capsys.readouterr().out
    assert not (directory / "human_feedback.jsonl").exists()

    say(run, 0, "reception", 2, "ana", "It talks past her; see https://me:hunter2@host/")
    say(run, 0, "reception", 4, "ben")
    say(run, 0, "resonation", "3", "ben")  # typed as text
    say(run, 1, "reception", 5, "ana")
    say(run, 1, "reception", 1, "ana")  # she has changed her mind
    say(run, 1, "tone", "warm", "ana")
    say(run, 2, "reception", 9, "ben")  # off the scale
    taken_back = say(run, 2, "resonation", 1, "ben")
    connect_tracing(run.uri).delete_assessment(*taken_back.split())

    assert main(["feedback", "pull", str(directory)]) == 0
    said = capsys.readouterr().out
    file = directory / "human_feedback.jsonl"
    assert f"7 feedbacks on 3 replies: {file}" in said
    assert "2 of them are no number on the scale" in said
    text = file.read_text()
    assert "hunter2" not in text
    rows = sorted((json.loads(line) for line in text.splitlines()), key=lambda row: row["index"])
    assert [row["labels"] for row in rows] == [
        {"reception": {"ana": 2.0, "ben": 4.0}, "resonation": {"ben": 3.0}},
        {"reception": {"ana": 1.0}},
        {},
    ]
    assert rows[0]["model_labels"] == {
        "reception": {"fake-judge": 4.5},
        "resonation": {"fake-judge": 3.0},
    }
    assert (rows[0]["persona"], rows[0]["scenario"], rows[0]["query"], rows[0]["step"]) == (
        "Noor, 75",
        "Her garden is in flower.",
        "Look at it!",
        10,
    )
    assert (rows[0]["analysis"], rows[0]["response"]) == ("She is proud.", "How lovely, one 0!")
    assert rows[2]["response"].startswith("# Analysis\n")  # the answer as a whole: it had no sections
    first = rows[0]["raters"][0]
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "perspective": "reception",
        "value": 2,
        "rater": "ana",
        "rater_kind": "HUMAN",
        "rationale": "It talks past her; see https://<redacted>@host/",
    }

    labelled = read_labels(file)
    assert {dimension.name: dimension.perspective for dimension in labelled.dimensions} == {
        "reception": "reception",
        "resonation": "resonation",
    }
    assert labelled.raters("reception") == ("ana", "ben")


def test_a_run_id_needs_to_be_told_where(tracked: tuple[Path, TrackedRun], tmp_path: Path) -> None:
    directory, run = tracked
    say(run, 0, "reception", 2, "ana")
    out = tmp_path / "out" / "people.jsonl"
    assert main(["feedback", "pull", run.run_id, "--uri", run.uri, "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 1
    assert find_run(str(directory), None, None) == (run.run_id, run.uri)
    assert find_run(str(directory), "http://elsewhere", "http://here") == (run.run_id, "http://elsewhere")
    with pytest.raises(DataError, match="say with --uri where MLflow is"):
        find_run(run.run_id, None, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no run in MLflow"):
        find_run(str(tmp_path / "empty"), None, None)
    with pytest.raises(DataError, match=f"has no run {'0' * 32}"):
        pull_feedback(run.uri, "0" * 32, {"reception": Scale(1, 5)})


def test_a_server_that_is_away_is_one_sentence() -> None:
    with pytest.raises(RunError, match="did not give the traces of run abc") as told:
        pull_feedback("http://me:hunter2@127.0.0.1:9", "abc", {})
    assert "hunter2" not in str(told.value)
