"""The calibration report and its page, score map fitting, and the verb's pure parts."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from perm_ray.cli.judging.calibrate import assignments, only_needed, scales_of, show, write_report
from perm_ray.cli.pages.calibration_page import calibration_page, headline
from perm_ray.config.engines import EngineModel
from perm_ray.config.judges import JudgesConfig
from perm_ray.config.schema import Config, TrackingConfig
from perm_ray.data.items import make_scenario
from perm_ray.errors import DataError, RunError
from perm_ray.evaluation.calibration.agreement import Bootstrap, agreement
from perm_ray.evaluation.calibration.figures import CalibrationReport, calibrate, metrics
from perm_ray.evaluation.calibration.labelled import Dimension, LabelledItem, LabelledSet
from perm_ray.evaluation.calibration.score_fit import cross_validated, fit, fit_score_maps
from perm_ray.files import jsonable
from perm_ray.rewards.score_map import load_score_maps, score_maps_document
from perm_ray.tracking.mlflow_report import log_report
from perm_ray.types import JudgeItem, Judgment, Scale, Sections, Status

FIVE, THREE = Scale(1, 5), Scale(0, 2)
SCALES = {"expression": FIVE, "reception": FIVE}
MODES = dict.fromkeys(SCALES, "expected")
QUICK = Bootstrap(seed=1, num_resamples=100)
HOSTILE = "<script>alert(1)</script>\"'&"
DIMENSIONS = (
    Dimension("warmth", FIVE, "expression"),
    Dimension("opening", THREE, "reception", turned=True),
    Dimension("advice", FIVE, None),
)


def sample(n: int = 40, text: str = "A reply") -> tuple[LabelledSet, dict[str, dict[str, Judgment]]]:
    """Rated replies in two languages, and a judge who sees `expression` as people do, a point too high."""
    generator = np.random.default_rng(4)
    items, judgments = [], {}
    for i in range(n):
        truth = int(generator.integers(1, 6))
        people = {r: float(np.clip(truth + generator.integers(-1, 2), 1, 5)) for r in ("ana", "ben")}
        scenario = make_scenario("Ana", "A day", f"Query {i // 2} {text}", language=("en", "pt")[i % 2])
        items.append(
            LabelledItem(
                JudgeItem(f"item-{i}", scenario, Sections(None, f"{text} {i}")),
                {"warmth": people, "opening": {"ana": float(truth % 3)}, "advice": people},
                {"warmth": {"some-model": 3.0}},
            )
        )
        score = float(np.clip(truth + 1 + generator.normal(0, 0.3), 1, 5))
        judgments[f"item-{i}"] = {
            "expression": Judgment(
                "expression", Status.OK, score, reason=text, judge="m", rubric_digest="r1"
            ),
            "reception": Judgment("reception", Status.UNPARSEABLE, reason="no number")
            if i % 4 == 0
            else Judgment("reception", Status.OK, 1 + 2.0 * (truth % 3), judge="m", rubric_digest="r2"),
        }
    return LabelledSet("sample", tuple(items), DIMENSIONS), judgments


def report_of(n: int = 40, text: str = "A reply") -> CalibrationReport:
    labelled, judgments = sample(n, text)
    return calibrate(labelled, judgments, SCALES, MODES, QUICK)


# ---- the report ------------------------------------------------------------------------------


def test_a_judge_is_held_against_the_mean_of_people() -> None:
    labelled, judgments = sample()
    warmth, opening, advice = calibrate(labelled, judgments, SCALES, MODES, QUICK).dimensions
    judged = np.array(
        [judgments[item.item.item_id]["expression"].score for item in labelled.items], dtype=float
    )
    people = labelled.ratings("warmth", ("ana", "ben"))
    assert warmth.judge is not None
    assert warmth.judge.figures == agreement(judged, people.mean(axis=1), FIVE, QUICK)
    assert warmth.judge.by_rater["ana"] == agreement(judged, people[:, 0], FIVE, QUICK)
    assert set(warmth.people.pairs) == {"ana and ben"}
    assert set(warmth.models) == {"some-model"}
    assert warmth.models["some-model"]["spearman"].value is None
    # On 0 to 2 the judge's 1, 3, 5 are 0, 1, 2, exactly what the one person gave.
    assert opening.judge is not None
    assert opening.judge.figures["kappa"].value == pytest.approx(1.0)
    assert opening.people.line["kappa"].reason == "there are not two human raters"
    assert advice.judge is None
    assert advice.people.line["kappa"].value is not None


def test_coverage_counts_what_became_of_each_judgment() -> None:
    opening = report_of().dimensions[1].judge
    assert opening is not None
    assert dict(opening.coverage) == {"ok": 30, "unparseable": 10, "failed": 0, "skipped": 0}
    assert sum(map(sum, opening.confusion.counts)) == 30
    assert opening.figures["kappa"].n == 30


def test_slices_by_tag_exist_where_tags_differ() -> None:
    warmth = report_of().dimensions[0].judge
    assert warmth is not None
    assert list(warmth.slices) == ["language en", "language pt"]
    assert sum(sum(part.coverage.values()) for part in warmth.slices.values()) == 40


def test_the_furthest_apart_come_first() -> None:
    warmth = report_of().dimensions[0].judge
    assert warmth is not None
    distances = [abs(each.judged - each.people) for each in warmth.disagreements]
    assert len(distances) == 10
    assert distances == sorted(distances, reverse=True)
    assert distances[0] == max(abs(judged - people) for judged, people in warmth.points)


def test_a_judge_who_says_nothing_has_no_figures_and_no_nan() -> None:
    labelled, judgments = sample()
    silent = {
        name: {p: Judgment(p, Status.FAILED, reason="timeout") for p in by} for name, by in judgments.items()
    }
    report = calibrate(labelled, silent, SCALES, MODES, QUICK)
    warmth = report.dimensions[0].judge
    assert warmth is not None
    assert warmth.figures["kappa"].reason.startswith("only 0 items")
    assert "NaN" not in json.dumps(asdict(report))
    assert "not known" in calibration_page(report, {})
    assert report.judges["expression"].model == ""


def test_metrics_are_flat_and_finite() -> None:
    found = dict(metrics(report_of()))
    assert found["calibration/warmth/ok"] == 40
    assert {"calibration/warmth/judge/kappa", "calibration/warmth/line/kappa"} <= found.keys()
    assert all(np.isfinite(value) for value in found.values())
    assert "calibration/opening/line/kappa" not in found


# ---- the page --------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Tags, attributes and ids of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]


def elements(page: str) -> Elements:
    found = Elements()
    found.feed(page)
    return found


def test_the_page_needs_nothing_from_elsewhere() -> None:
    found = elements(calibration_page(report_of(), {}))
    assert not {"script", "iframe", "img", "object"} & set(found.tags)
    references = [
        value for _, name, value in found.attributes if name in ("src", "href", "xlink:href", "action")
    ]
    assert references
    assert all(value.startswith(("#", "data:")) for value in references)
    assert found.tags.count("svg") == 5  # bars for three dimensions, dots for the two with a judge
    inner = {value.removeprefix("#") for value in references if value.startswith("#")}
    assert inner <= set(found.ids)


def test_ids_are_unique_and_drawings_do_not_share_any() -> None:
    found = elements(calibration_page(report_of(), {}))
    assert len(found.ids) == len(set(found.ids))


def test_texts_are_escaped_wherever_they_come_from() -> None:
    page = calibration_page(report_of(text=HOSTILE), {})
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_regions_that_scroll_can_be_reached_with_the_keyboard() -> None:
    page = calibration_page(report_of(), {})
    scrolling = re.findall(r'<div class="scroll"[^>]*>', page)
    assert scrolling
    assert all('tabindex="0"' in tag and "aria-label=" in tag for tag in scrolling)
    assert "prefers-color-scheme: dark" in page


def test_one_sentence_says_it() -> None:
    warmth, opening, advice = report_of().dimensions
    assert "In a person's place, the judge agrees" in headline(warmth)
    assert headline(opening).endswith("there is no second person to compare with.")
    assert headline(advice).startswith("No perspective is held against this dimension")


def test_the_same_report_makes_the_same_page() -> None:
    assert calibration_page(report_of(), {}) == calibration_page(report_of(), {})


# ---- score maps ------------------------------------------------------------------------------


def test_a_fitted_map_takes_out_the_judges_generosity(tmp_path: Path) -> None:
    labelled, judgments = sample(100)
    report = calibrate(labelled, judgments, SCALES, MODES, QUICK)
    maps = fit_score_maps(labelled, judgments, report, SCALES, seed=0)
    assert set(maps) == {"expression", "reception"}
    expression = maps["expression"]
    assert expression.error["after"] < expression.error["before"]
    assert expression.error["after"] < expression.error["mean"]
    assert expression.apply(4.0) < 3.6  # the judge's 4 is people's 3
    assert (expression.judge, expression.mode, expression.rubric_digests, expression.n) == (
        *("m", "expected", ("r1",)),
        100,
    )
    path = tmp_path / "map.json"
    path.write_text(json.dumps(jsonable(score_maps_document(maps))))
    assert load_score_maps(path) == maps


def test_a_map_of_noise_is_no_better_than_the_plain_mean() -> None:
    generator = np.random.default_rng(0)
    judged, people = generator.uniform(1, 5, 200), generator.uniform(1, 5, 200)
    error = cross_validated(judged, people, list(map(str, range(200))), FIVE, seed=0)
    assert error["after"] >= error["mean"] - 0.05
    scores, mapped = fit(judged, people, FIVE)
    assert list(scores) == sorted(set(scores))
    assert list(mapped) == sorted(mapped)


def test_replies_to_one_query_are_held_out_together() -> None:
    # Each query's replies are alike: a fold that had seen one would know the others.
    generator = np.random.default_rng(0)
    queries = np.repeat([str(i) for i in range(30)], 8).tolist()
    people = np.repeat(generator.uniform(1, 5, 30), 8)
    judged = np.repeat(generator.uniform(1, 5, 30), 8)
    together = cross_validated(judged, people, queries, FIVE, seed=0)
    apart = cross_validated(judged, people, list(map(str, range(240))), FIVE, seed=0)
    assert together["after"] > 1.1 * apart["after"]


def test_too_few_items_are_refused() -> None:
    labelled, judgments = sample(12)
    report = calibrate(labelled, judgments, SCALES, MODES, QUICK)
    with pytest.raises(DataError, match=r"A score map of expression needs 20 items .* found 12"):
        fit_score_maps(labelled, judgments, report, SCALES, seed=0)


# ---- the verb --------------------------------------------------------------------------------


def test_a_report_is_three_files(tmp_path: Path) -> None:
    labelled, judgments = sample()
    write_report(tmp_path / "out", calibrate(labelled, judgments, SCALES, MODES, QUICK), judgments, {})
    document = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert document["dimensions"][0]["judge"]["figures"]["kappa"]["n"] == 40
    rows = [json.loads(line) for line in (tmp_path / "out" / "judgments.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"item-{i}" for i in range(40)]
    assert (tmp_path / "out" / "calibration.html").read_text().startswith("<!doctype html>")


def test_the_terminal_shows_the_judge_beside_people() -> None:
    console = Console(record=True, width=80)
    show(report_of(), console)
    text = console.export_text()
    assert "warmth: expression, 40 rated replies" in text
    assert "opening: reception, 40 rated replies, turned over" in text
    assert "Judgments: 30 ok, 10 unparseable, 0 failed, 0 skipped" in text
    assert "a person (to beat)" in text
    assert "…" not in text, "80 columns are enough"
    assert "model some-model" in text


def test_options_that_name_and_value() -> None:
    assert assignments(["a=b", "c=-d"], "--map") == {"a": "b", "c": "-d"}
    assert scales_of(["a=1:5", "b=-1:1"]) == {"a": FIVE, "b": Scale(-1, 1)}
    for text in ("a", "a=", "=b"):
        with pytest.raises(DataError, match="--map must be NAME=VALUE"):
            assignments([text], "--map")
    for text in ("a=1", "a=5:1", "a=x:2", "a=1:2:3"):
        with pytest.raises(DataError, match="--scale must be DIMENSION=LOW:HIGH"):
            scales_of([text])


def test_only_the_judges_that_are_needed_are_started() -> None:
    own = replace(Config().judges.pools["expression"], model="own")
    pools = {**Config().judges.pools, "expression": own}
    base = Config(models={"judge": EngineModel(), "own": EngineModel()}, judges=JudgesConfig(pools=pools))
    needed = only_needed(base, {"expression"})
    assert set(needed.judges.pools) == {"expression"}
    assert set(needed.judge_engines) == {"own"}


def test_a_report_is_one_run_of_mlflow(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    file = tmp_path / "calibration.json"
    file.write_text("{}")
    config = TrackingConfig()
    uri = log_report(
        config, "calibration-sample", tmp_path, {"calibration/a/judge/kappa": 0.5}, {"data": "x"}, [file]
    )
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(config.experiment)
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"calibration/a/judge/kappa": 0.5}
    assert [entry.path for entry in client.list_artifacts(found.info.run_id)] == ["calibration.json"]


def test_a_report_of_many_runs_has_them_below_it(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    config, children = TrackingConfig(), {"a-seed1": {"reward": 0.5}, "a-seed2": {"reward": 0.25}}
    uri = log_report(config, "ablation", tmp_path, {"a/reward": 0.375}, {}, [], children)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(config.experiment)
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop("ablation").info.run_id
    assert {name: run.data.metrics for name, run in runs.items()} == children
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent}


def test_a_server_that_is_away_is_said_in_a_sentence(tmp_path: Path) -> None:
    config = replace(TrackingConfig(), mlflow_uri="http://user:secret@127.0.0.1:9")
    with pytest.raises(RunError, match="did not take the report") as caught:
        log_report(config, "x", tmp_path, {}, {}, [])
    assert "secret" not in str(caught.value)
