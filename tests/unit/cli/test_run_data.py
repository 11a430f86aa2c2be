"""Reading a run directory for the report: whole runs, and everything that a kill or a bad line leaves."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from perm_ray.cli.pages.run_data import UNFINISHED, read_run
from perm_ray.errors import DataError, UserError
from perm_ray.runs.directory import RunDirectory
from perm_ray.types import Status
from tests.support.fake_run import JUDGE, write_fake_run

STEPS, ROLLOUTS = 12, 16


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_run(tmp_path_factory.mktemp("runs") / "fake", STEPS, ROLLOUTS)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


# ---- the fake itself --------------------------------------------------------------------------


def test_a_fake_run_says_that_it_is_one_and_repeats_with_its_seed(whole: Path, tmp_path: Path) -> None:
    assert "invented" in (whole / "FAKE").read_text()
    again = write_fake_run(tmp_path / "again", STEPS, ROLLOUTS)
    other = write_fake_run(tmp_path / "other", STEPS, ROLLOUTS, seed=1)
    samples = "samples/step_000003.jsonl"
    assert (again / samples).read_bytes() == (whole / samples).read_bytes()
    assert (other / samples).read_bytes() != (whole / samples).read_bytes()
    rows = [json.loads(line) for line in (whole / samples).read_text().splitlines()]
    assert len(rows) == ROLLOUTS
    assert {judgment["judge"] for row in rows for judgment in row["judgments"].values()} == {JUDGE}


# ---- a whole run ------------------------------------------------------------------------------


def test_a_finished_run_is_read_whole(whole: Path) -> None:
    report = read_run(whole)
    assert report.notes == ()
    assert (report.status, report.name) == ("FINISHED", "fake")
    assert report.steps.startswith(f"{STEPS} of {STEPS} steps in ")
    assert len(report.rollouts) == STEPS * ROLLOUTS
    assert Counter(row.step for row in report.heldout) == {0: 16, STEPS: 16}
    assert [(view.name, view.low, view.high, view.reads) for view in report.perspectives] == [
        ("resonation", 1, 5, "analysis"),
        ("expression", 1, 5, "response"),
        ("reception", 1, 5, "response"),
        ("bystander", 0, 100, "response"),
    ]
    assert {"mean", "low", "high", "pairs"} <= set(report.difference)
    before, after = (RunDirectory(whole).read_metrics()[i]["reward/mean"] for i in (0, -1))
    reward = next(row for row in report.metrics if row.name == "reward/mean")
    assert (reward.first, reward.last) == (before, after)
    heldout = next(row for row in report.evaluation if row.name == "reward/mean")
    assert heldout.last > heldout.first
    assert ("a step", "2 prompts x 8 completions") in report.essentials


def test_rows_come_back_as_they_were_written(whole: Path) -> None:
    report = read_run(whole)
    written = json.loads((whole / "samples/step_000001.jsonl").read_text().splitlines()[0])
    row = report.rollouts[0]
    assert (row.scenario_id, row.index, row.completion) == (
        written["scenario_id"],
        written["index"],
        written["completion"],
    )
    judgment = row.judgments["resonation"]
    assert judgment.status == Status(written["judgments"]["resonation"]["status"])
    assert judgment.score == written["judgments"]["resonation"]["score"]
    masked = [row for row in report.rollouts if row.reward is None]
    assert masked
    assert all(row.masked_because for row in masked)


# ---- runs that are not whole ------------------------------------------------------------------


def test_a_run_under_way_says_what_is_missing(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / f"samples/heldout_{STEPS:06d}.jsonl").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "reward/me')
    report = read_run(run)
    assert (report.status, report.evaluation, report.difference) == (UNFINISHED, (), {})
    assert report.steps == f"{STEPS} of {STEPS} steps"
    said = " ".join(report.notes)
    for part in ("no summary.json", "one line that cannot be read", "no held-out comparison"):
        assert part in said


def test_a_run_that_has_only_begun_has_no_figures(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "samples")
    report = read_run(run)
    assert (report.metrics, report.rollouts, report.perspectives) == ((), (), ())
    assert any("no samples of training steps" in note for note in report.notes)


def test_bad_lines_are_counted_and_the_others_read(run: Path) -> None:
    samples = run / "samples/step_000002.jsonl"
    lines = samples.read_text().splitlines()
    infinite = json.loads(lines[0])
    infinite["advantage"] = 1.0
    bad = [
        json.dumps(infinite).replace('"advantage": 1.0', '"advantage": 1e999'),
        "[]",
        '{"step": 2}',
        '{"st',
    ]
    samples.write_text("\n".join([*lines, *bad]))
    report = read_run(run)
    assert len(report.rollouts) == STEPS * ROLLOUTS
    assert any("step_000002.jsonl has 4 lines that cannot be read" in note for note in report.notes)


def test_other_damage_gives_a_note_each(run: Path) -> None:
    (run / "config.yaml").write_text("run: {stepz: 3}\n")
    (run / "summary.json").write_text("[1]")
    (run / "failed_step_000013.json").write_text("{}")
    report = read_run(run)
    said = " ".join(report.notes)
    for part in ("run.stepz", "summary.json is not", "failed_step_000013.json"):
        assert part in said
    assert report.config_text == "run: {stepz: 3}\n"
    assert report.steps == f"{STEPS} steps"


def test_a_run_that_was_resumed_is_not_taken_for_finished(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "steps": 5}))
    assert any(f"has {STEPS} steps and summary.json 5" in note for note in read_run(run).notes)


def test_a_perspective_nobody_knows_takes_its_scale_from_its_scores(run: Path) -> None:
    samples = run / "samples/step_000001.jsonl"
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    for row in rows:
        row["judgments"]["humour"] = {**row["judgments"]["resonation"], "status": "ok", "score": 7.0}
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    humour = read_run(run).perspectives[-1]
    assert (humour.name, humour.low, humour.high) == ("humour", 0.0, 7.0)


@pytest.mark.parametrize("kind", ["nothing", "a file", "a folder without"])
def test_what_is_no_run_directory_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    if kind == "a file":
        path.write_text("")
    elif kind == "a folder without":
        path.mkdir()
    with pytest.raises(DataError, match="is not a run directory: found " + kind) as caught:
        read_run(path)
    assert isinstance(caught.value, UserError)
    assert "runs/<name>" in str(caught.value)
