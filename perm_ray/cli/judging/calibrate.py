"""`perm-ray judge calibrate`: do the judges agree with people, and as well as people among themselves?

Reads and checks the rated replies, judges them, writes a report (JSON, a page, every judgment) and prints
the figures; on request fits a map from the judges' scores to people's, and logs it all to MLflow.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from perm_ray.cli.judging.judged import judge_all
from perm_ray.cli.judging.tables import confusion_table, dimension_rows, figure_table
from perm_ray.cli.pages.calibration_page import calibration_page
from perm_ray.config.load import load_config
from perm_ray.config.schema import Config
from perm_ray.data.items import Preference, has_preferences, read_preferences
from perm_ray.errors import DataError
from perm_ray.evaluation.bootstrap import Difference
from perm_ray.evaluation.calibration.agreement import Bootstrap
from perm_ray.evaluation.calibration.figures import CalibrationReport, Judgments, calibrate, metrics
from perm_ray.evaluation.calibration.labelled import LabelledSet, check_perspectives
from perm_ray.evaluation.calibration.labels import read_labels
from perm_ray.evaluation.calibration.pairs import Scores, figure_rows, pair_figures, scores_of
from perm_ray.evaluation.calibration.score_fit import fit_score_maps
from perm_ray.files import write_json_atomic, write_jsonl_atomic, write_text_atomic
from perm_ray.judges.startup import build_perspectives
from perm_ray.rewards.score_map import ScoreMap, score_maps_document
from perm_ray.tracking.mlflow_report import log_report
from perm_ray.tracking.samples import judgment_row
from perm_ray.types import Scale

_WORTH = 0.98  # of the plain mean's error: a map that stays above it is not worth using


def run(options: argparse.Namespace) -> int:
    """Judge the rated replies, write the report and print its figures."""
    config, console = load_config(options.config, options.overrides), Console()
    if options.limit is not None and options.limit < 1:
        raise DataError(f"--limit must be 1 or more, found {options.limit}.")
    if options.data.is_file() and has_preferences(options.data):
        return _calibrate_pairs(options, config, console)
    labelled = _read(options, config)
    config = only_needed(config, {d.perspective for d in labelled.dimensions if d.perspective})
    judgments = judge_all(config, [each.item for each in labelled.items], console)
    scales = {name: each.scale for name, each in build_perspectives(config.judges).items()}
    modes = {name: pool.scoring.mode for name, pool in config.judges.pools.items()}
    report = calibrate(labelled, judgments, scales, modes, Bootstrap(seed=config.run.seed))
    write_report(options.out, report, judgments, {})
    show(report, console)
    if options.fit_map is not None:
        score_maps = fit_score_maps(labelled, judgments, report, scales, config.run.seed)
        write_json_atomic(options.fit_map, score_maps_document(score_maps))
        write_report(options.out, report, judgments, score_maps)
        show_maps(score_maps, options.fit_map, console)
    console.print(f"Report: {options.out / 'calibration.html'}", markup=False, soft_wrap=True)
    if options.mlflow:
        _log(options, config, report, console)
    return 0


def _calibrate_pairs(options: argparse.Namespace, config: Config, console: Console) -> int:
    """Say how often the judges prefer what people prefer, from pairs (`better`, `worse`)."""
    pairs = read_preferences(options.data)[0][: options.limit]
    figures = pair_figures(pairs, [judge_pairs(config, pairs, console)], config.run.seed)
    show_pairs(figures, len(pairs), ("share (0.5 is chance)",), console)
    plain = {name: asdict(figure) for name, (figure,) in figures.items()}
    write_json_atomic(options.out / "pairs.json", {"pairs": len(pairs), "shares": plain})
    console.print(f"Report: {options.out / 'pairs.json'}", markup=False, soft_wrap=True)
    return 0


def judge_pairs(config: Config, pairs: Sequence[Preference], console: Console) -> Scores:
    """Have both replies of every pair judged, and return the scores."""
    judgments = judge_all(config, [item for pair in pairs for item in (pair.better, pair.worse)], console)
    return scores_of(judgments, build_perspectives(config.judges), config.rewards)


def show_pairs(
    figures: Mapping[str, Sequence[Difference]], count: int, columns: Sequence[str], console: Console
) -> None:
    """Print how often the judges prefer what people prefer."""
    title = f"{count} pairs: how often the reply that people prefer has the higher score (95% interval)"
    table = Table(title=title, title_justify="left")
    for column in ("", *columns, "scenarios"):
        table.add_column(column)
    for row in figure_rows(figures):
        table.add_row(*row)
    console.print(table)


def _read(options: argparse.Namespace, config: Config) -> LabelledSet:
    """Read the rated replies and check everything that can be checked before judges start."""
    labelled = read_labels(options.data, assignments(options.map, "--map"), scales_of(options.scale))
    check_perspectives(labelled.dimensions, config.judges.pools)
    return labelled if options.limit is None else labelled.first(options.limit)


def assignments(texts: Sequence[str], option: str) -> dict[str, str]:
    """Return `a=b` texts as a mapping. Raises `DataError` for one that is none."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise DataError(f"{option} must be NAME=VALUE, found {text!r}.")
        pairs[name] = value
    return pairs


def scales_of(texts: Sequence[str]) -> dict[str, Scale]:
    """Return `dimension=1:5` texts as scales. Raises `DataError` for one that is none."""
    scales = {}
    for name, value in assignments(texts, "--scale").items():
        low, _, high = value.partition(":")
        if not (low.lstrip("-").isdigit() and high.lstrip("-").isdigit() and int(low) < int(high)):
            raise DataError(f"--scale must be DIMENSION=LOW:HIGH in whole numbers, found {name}={value}.")
        scales[name] = Scale(int(low), int(high))
    return scales


def only_needed(config: Config, perspectives: set[str]) -> Config:
    """Return the configuration with the pools of `perspectives` alone: only models they ask are started."""
    pools = {name: pool for name, pool in config.judges.pools.items() if name in perspectives}
    return replace(config, judges=replace(config.judges, pools=pools))


def write_report(
    folder: Path, report: CalibrationReport, judgments: Judgments, score_maps: Mapping[str, ScoreMap]
) -> None:
    """Write `calibration.json`, `calibration.html` and `judgments.jsonl`."""
    rows = [
        {"id": name, "judgments": {p: judgment_row(judgment) for p, judgment in by_perspective.items()}}
        for name, by_perspective in judgments.items()
    ]
    write_jsonl_atomic(folder / "judgments.jsonl", rows)
    maps = {"score_maps": score_maps_document(score_maps)} if score_maps else {}
    write_json_atomic(folder / "calibration.json", asdict(report) | maps)
    write_text_atomic(folder / "calibration.html", calibration_page(report, score_maps))


def show(report: CalibrationReport, console: Console) -> None:
    """Print each dimension's figures, confusion matrix and what became of its judgments."""
    for entry in report.dimensions:
        dimension = entry.dimension
        title = f"{dimension.name}: {dimension.perspective or 'no perspective'}, {entry.n} rated replies"
        console.print(
            figure_table(title + (", turned over" if dimension.turned else ""), dimension_rows(entry))
        )
        console.print(f"Krippendorff's alpha of all people: {entry.people.alpha}", markup=False)
        if entry.judge is not None:
            counts = ", ".join(f"{count} {status}" for status, count in entry.judge.coverage.items())
            console.print(f"Judgments: {counts}", markup=False)
            console.print(confusion_table(entry.judge.confusion, "people", "judge"))


def show_maps(score_maps: Mapping[str, ScoreMap], file: Path, console: Console) -> None:
    """Say what fitting was worth, by cross-validation."""
    for name, score_map in score_maps.items():
        error = score_map.error
        text = f"Score map of {name}, mean absolute error: {error['before']:.3f} before"
        if "after" in error:
            text += (
                f", {error['after']:.3f} after (held out), {error['mean']:.3f} for the plain mean of people"
            )
            if error["after"] > _WORTH * error["mean"]:
                text += "; the judge adds next to nothing to that mean"
        console.print(f"{text}.", markup=False, soft_wrap=True)
    console.print(f"Use it with rewards.score_map={file}", markup=False, soft_wrap=True)


def _log(options: argparse.Namespace, config: Config, report: CalibrationReport, console: Console) -> None:
    files = [options.out / name for name in ("calibration.json", "calibration.html", "judgments.jsonl")]
    params = {f"judges.{name}": f"{judge.model}, {judge.mode}" for name, judge in report.judges.items()}
    uri = log_report(
        config.tracking,
        f"calibration-{report.source}",
        options.out,
        dict(metrics(report)),
        {"data": report.source, **params},
        [*files, *([options.fit_map] if options.fit_map else [])],
    )
    console.print(f"MLflow: {uri}", markup=False, soft_wrap=True)
