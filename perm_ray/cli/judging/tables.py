"""Print figures of agreement, and texts to read."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from perm_ray.evaluation.calibration.agreement import FIGURES, Confusion, Figure
from perm_ray.evaluation.calibration.figures import DimensionReport
from perm_ray.types import JudgeItem

_SHOWN_CHARS = 400


def figure_table(title: str, rows: Mapping[str, Mapping[str, Figure]]) -> Table:
    """Return a row for each pair of raters, with the 95% interval of kappa; the others are in the reports."""
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    for name in ("kappa", "interval", *FIGURES[1:], "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for who, figures in rows.items():
        values = [_value(figures[name]) if name in figures else "" for name in FIGURES]
        interval = _interval(figures["kappa"]) if "kappa" in figures else ""
        count = max(figure.n for figure in figures.values())
        table.add_row(escape(who), values[0], interval, *values[1:], str(count))
    return table


def confusion_table(confusion: Confusion, rows: str, columns: str) -> Table:
    """Return the counts as a table; `rows` and `columns` name the raters."""
    table = Table(title=f"{escape(rows)} (rows), {escape(columns)} (columns)", title_justify="left")
    table.add_column("")
    for label in confusion.labels:
        table.add_column(label, justify="right")
    for label, counts in zip(confusion.labels, confusion.counts, strict=True):
        table.add_row(label, *map(str, counts))
    return table


def dimension_rows(entry: DimensionReport) -> dict[str, Mapping[str, Figure]]:
    """Return the rows of a dimension: the judge, each person and each model against (other) people.
    "Minus a person" is the judge's margin over a person in that person's place."""
    rows: dict[str, Mapping[str, Figure]] = {}
    if entry.judge is not None:
        rows["judge and people"] = entry.judge.figures
        rows |= {f"  {tag}": part.figures for tag, part in entry.judge.slices.items()}
        rows["  minus a person"] = entry.judge.margin
    rows["a person (to beat)"] = entry.people.line
    rows |= {f"  {rater}": figures for rater, figures in entry.people.against_others.items()}
    return rows | {f"model {rater}": f for rater, f in entry.models.items()}


def print_item(console: Console, head: str, item: JudgeItem) -> None:
    """Print a reply, shortened."""
    texts = {"seeker": item.scenario.query, "response": item.sections.response}
    console.print(f"\n[bold]{escape(head)}[/bold]")
    for name, text in texts.items():
        if text:
            short = text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"
            console.print(f"  {name}: {short}", markup=False, highlight=False)


def _value(figure: Figure) -> str:
    return "none" if figure.value is None else f"{figure.value:.2f}"


def _interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return ""
    return f"{figure.low:.2f} .. {figure.high:.2f}"
