"""Make the calibration report one HTML page, for people who never open a terminal.

Self-contained: no script, no font, no image from elsewhere, and a policy in the page that forbids them.
Every text of the data goes through Jinja's escaping; the template draws, as SVG in the page's colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from perm_ray.cli.pages.base import page_template
from perm_ray.evaluation.calibration.agreement import FIGURES
from perm_ray.evaluation.calibration.figures import CalibrationReport, DimensionReport, Figures
from perm_ray.rewards.score_map import ScoreMap
from perm_ray.types import Scale

_TEMPLATE = Path(__file__).parent / "templates" / "calibration.html.j2"
_FIFTHS = 5


def calibration_page(report: CalibrationReport, score_maps: Mapping[str, ScoreMap]) -> str:
    """Return the page. `score_maps` are those that were fitted on the same data, if any."""
    template = page_template(_TEMPLATE, {"number": number, "across": across})
    return template.render(
        report=report,
        score_maps=score_maps,
        figure_names=FIGURES,
        entries=[_entry(report, entry, f"d{i}") for i, entry in enumerate(report.dimensions, start=1)],
    )


def number(value: float) -> str:
    """Format a rating with two digits at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def across(value: float, low: float, high: float, start: float, length: float) -> float:
    """Return where on an axis a value is drawn: `low` at `start`, `high` at `start + length`."""
    return round(start + length * (value - low) / (high - low), 1)


def headline(entry: DimensionReport) -> str:
    """Say it for the reader who reads one sentence."""
    line = entry.people.line["kappa"].value
    person = "there is no second person to compare with" if line is None else f"a person at {line:.2f}"
    if entry.judge is None:
        return f"No perspective is held against this dimension; among the others, {person}."
    kappa = entry.judge.figures["kappa"]
    if kappa.value is None:
        return f"The judge's agreement is not known: {kappa.reason}."
    text = f"Kappa: the judge agrees with people at {kappa.value:.2f}"
    if line is None:
        return f"{text}; {person}."
    margin = entry.judge.margin["kappa"]
    if margin.low is None or margin.high is None:
        return f"{text}, {person} with the others."
    verdict = "neither clearly more nor clearly less than that person"
    if margin.low > 0:
        verdict = "more than that person"
    elif margin.high < 0:
        verdict = "less than that person"
    return f"{text}, {person} with the others. In a person's place, the judge agrees {verdict}."


def _entry(report: CalibrationReport, entry: DimensionReport, anchor: str) -> dict[str, object]:
    judge = entry.judge
    sides: dict[str, Figures] = {"judge": judge.figures} if judge else {}
    sides["people"] = entry.people.line
    values = [v for side in sides.values() for f in side.values() for v in (f.low, f.value) if v is not None]
    points = judge.points if judge else ()
    return {
        "report": entry,
        "anchor": anchor,
        "headline": headline(entry),
        "sides": sides,
        "least": min([0.0, *values]) - 0.02,
        "dots": _dots(points, entry.dimension.scale, report.bootstrap.seed),
        "means": _means(points),
        "largest": max((max(row) for row in judge.confusion.counts), default=0) if judge else 0,
        "rows": _figure_rows(entry),
    }


def _dots(points: Sequence[tuple[float, float]], scale: Scale, seed: int) -> list[list[float]]:
    """Move each point (judge, people) a little, since many coincide."""
    table = np.reshape(np.array(points), (-1, 2))
    noise = np.random.default_rng(seed).normal(0, 0.008 * (scale.high - scale.low), table.shape)
    return (table + noise).tolist()


def _means(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Return the mean point of each fifth of the judge's scores."""
    order = np.array(sorted(points, key=lambda point: point[0]))
    return [part.mean(axis=0).tolist() for part in np.array_split(order, _FIFTHS) if len(part)]


def _figure_rows(entry: DimensionReport) -> dict[str, Figures]:
    """Return all pairs of raters by name, for the table."""
    rows: dict[str, Figures] = {}
    if entry.judge is not None:
        rows["judge and the mean of people"] = entry.judge.figures
        rows |= {f"judge and {rater}": figures for rater, figures in entry.judge.by_rater.items()}
        rows["judge in a person's place, minus that person"] = entry.judge.margin
    rows["a person and the others (the line to beat)"] = entry.people.line
    rows |= {f"{rater} and the others": figures for rater, figures in entry.people.against_others.items()}
    rows |= dict(entry.people.pairs)
    return rows | {f"{rater} (model) and the mean of people": f for rater, f in entry.models.items()}
