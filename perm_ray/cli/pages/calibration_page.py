"""The calibration report as one HTML page, for people who never open a terminal.

Self-contained: no script, no font, no image from elsewhere, and a policy in the page that forbids them.
Every text of the data goes through Jinja's escaping; drawings are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from perm_ray.cli.pages.base import page_template
from perm_ray.cli.pages.calibration_plots import agreement_bars, reliability
from perm_ray.evaluation.calibration.agreement import FIGURES
from perm_ray.evaluation.calibration.figures import CalibrationReport, DimensionReport, Figures
from perm_ray.rewards.score_map import ScoreMap

_TEMPLATES = Path(__file__).parent / "templates"


def calibration_page(report: CalibrationReport, score_maps: Mapping[str, ScoreMap]) -> str:
    """The page. `score_maps` are those that were fitted on the same data, if any."""
    template = page_template(_TEMPLATES / "calibration.html.j2", {"number": number})
    return template.render(
        report=report,
        score_maps=score_maps,
        figure_names=FIGURES,
        entries=[_entry(report, entry, f"d{i}") for i, entry in enumerate(report.dimensions, start=1)],
    )


def number(value: float) -> str:
    """A rating: two digits at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def headline(entry: DimensionReport) -> str:
    """One sentence for the reader who reads one sentence."""
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
    sides: dict[str, Figures] = {"people": entry.people.line}
    plot = None
    if entry.judge is not None:
        sides = {"judge": entry.judge.figures, **sides}
        seed, scale = report.bootstrap.seed, entry.dimension.scale
        plot = Markup(reliability(entry.judge.points, scale, f"{anchor}-r", seed))
    return {
        "report": entry,
        "anchor": anchor,
        "headline": headline(entry),
        "bars": Markup(agreement_bars(sides, f"{anchor}-b")),
        "reliability": plot,
        "largest": max((max(row) for row in entry.judge.confusion.counts), default=0) if entry.judge else 0,
        "rows": _figure_rows(entry),
    }


def _figure_rows(entry: DimensionReport) -> dict[str, Figures]:
    """All pairs of raters by name, for the table."""
    rows: dict[str, Figures] = {}
    if entry.judge is not None:
        rows["judge and the mean of people"] = entry.judge.figures
        rows |= {f"judge and {rater}": figures for rater, figures in entry.judge.by_rater.items()}
        rows["judge in a person's place, minus that person"] = entry.judge.margin
    rows["a person and the others (the line to beat)"] = entry.people.line
    rows |= {f"{rater} and the others": figures for rater, figures in entry.people.against_others.items()}
    rows |= dict(entry.people.pairs)
    return rows | {f"{rater} (model) and the mean of people": f for rater, f in entry.models.items()}
