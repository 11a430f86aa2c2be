"""Reading a run directory for the report: whole runs, and everything that a kill or a bad line leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from perm_ray.cli.pages.curves import curves_of, waits_in_words
from perm_ray.cli.pages.run_data import UNFINISHED, RunReport, read_run, steps_in_words
from perm_ray.errors import DataError, UserError
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


def titles(report: RunReport) -> list[str]:
    return [chart.title for section in curves_of(report).sections for chart in section.charts]


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
    assert steps_in_words(report).startswith(f"{STEPS} of {STEPS} steps in ")
    assert len(report.rollouts) == STEPS * ROLLOUTS
    assert {step: len(rows) for step, rows in report.heldout.items()} == {0: 16, STEPS: 16}
    assert [(view.name, view.low, view.high, view.reads) for view in report.perspectives] == [
        ("resonation", 1, 5, "analysis"),
        ("expression", 1, 5, "response"),
        ("reception", 1, 5, "response"),
        ("bystander", 0, 100, "response"),
    ]
    assert report.evaluation is not None
    assert set(report.evaluation.difference) == {"mean", "low", "high", "pairs"}
    reward = next(span for span in report.spans if span.name == "reward/mean")
    assert reward.first == report.metrics[0]["reward/mean"]
    assert reward.last == report.metrics[-1]["reward/mean"]
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


def test_the_curves_are_those_of_the_metrics(whole: Path) -> None:
    report = read_run(whole)
    curves = curves_of(report)
    charts = {chart.title: chart for section in curves.sections for chart in section.charts}
    (reward,) = charts["Reward"].series
    assert charts["Reward"].steps == tuple(range(1, STEPS + 1))
    expected = [row["reward/mean"] for row in report.metrics]
    assert reward.values == pytest.approx(expected, rel=1e-4)
    assert reward.band == pytest.approx([row["reward/std"] for row in report.metrics], rel=1e-4)
    assert [line.name for line in charts["Failed judgments"].series] == [v.name for v in report.perspectives]
    assert charts["Held-out reward"].steps == (0, STEPS)
    assert charts["Attacks on reception"].steps == (10,)
    assert "Reward by culture" in charts
    # What this run does not have is said, and not drawn.
    assert "Sampler against trainer, ratio" not in charts
    assert any("policy/mismatch_max" in line for line in curves.left_out)
    # Every metric of the run has its place.
    others = {chart.title for chart in curves.others}
    assert "judge/bystander/cache_hit" in others
    assert others.isdisjoint({"reward/mean", "reward/std", "policy/kl", "time/train_s"})


def test_the_stages_add_up_to_the_step(whole: Path) -> None:
    report = read_run(whole)
    stages = next(chart for chart in curves_of(report).timeline if chart.kind == "stack")
    assert [line.name for line in stages.series] == [
        "generate",
        "judge",
        "train",
        "sync",
        "checkpoint",
        "rest",
    ]
    for number, row in enumerate(report.metrics):
        parts = [line.values[number] for line in stages.series]
        assert sum(part or 0.0 for part in parts) == pytest.approx(row["time/step_s"], rel=1e-3)
    shares, waited = waits_in_words(report)
    assert shares.startswith("Of the steps' time: train ")
    assert f"longest for bystander on {STEPS} of {STEPS} steps" in waited


# ---- runs that are not whole ------------------------------------------------------------------


def test_a_run_under_way_says_what_is_missing(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / f"samples/heldout_{STEPS:06d}.jsonl").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "reward/me')
    report = read_run(run)
    assert (report.status, report.evaluation, report.wall_time_s) == (UNFINISHED, None, None)
    assert len(report.metrics) == STEPS
    said = " ".join(report.notes)
    for part in ("no summary.json", "one line that cannot be read", "no held-out comparison"):
        assert part in said
    assert "Held-out reward" not in titles(report)


def test_a_run_that_has_only_begun_has_no_curves(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "samples")
    report = read_run(run)
    assert (report.metrics, report.rollouts, report.perspectives) == ((), (), ())
    assert titles(report) == []
    assert curves_of(report).left_out == ()  # nothing is left out of nothing
    assert waits_in_words(report) == ()
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
    (run / "samples/probes_000010.jsonl").write_text("{}\n")
    (run / "failed_step_000013.json").write_text("{}")
    report = read_run(run)
    said = " ".join(report.notes)
    for part in ("run.stepz", "summary.json is not", "probes_000010.jsonl", "failed_step_000013.json"):
        assert part in said
    assert report.config_text == "run: {stepz: 3}\n"
    assert steps_in_words(report) == f"{STEPS} steps"


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
