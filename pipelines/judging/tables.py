"""How the verbs of `perm-ray judge` print figures of agreement, and texts to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from perm_ray.evaluation.agreement import Confusion, Figure
from perm_ray.types import JudgeItem

if TYPE_CHECKING:
    from perm_ray.evaluation.calibration import DimensionReport

_SHOWN_CHARS = 400


def figure_table(title: str, rows: Mapping[str, Mapping[str, Figure]]) -> Table:
    """A row for each pair of raters, a column for each figure that any of them has."""
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    table = Table(title=escape(title), title_justify="left")
    table.add_column("")
    for name in (*names, "n"):
        table.add_column(name, justify="right")
    for who, figures in rows.items():
        items = {figure.n for figure in figures.values()}
        cells = [_cell(figures[name]) if name in figures else "" for name in names]
        table.add_row(escape(who), *cells, str(max(items)))
    return table


def confusion_table(confusion: Confusion, rows: str, columns: str) -> Table:
    """Counts, with who is in the rows and who in the columns."""
    table = Table(title=f"{escape(rows)} (rows) and {escape(columns)} (columns)", title_justify="left")
    table.add_column("")
    for label in confusion.labels:
        table.add_column(label, justify="right")
    for label, counts in zip(confusion.labels, confusion.counts, strict=True):
        table.add_row(label, *map(str, counts))
    return table


def dimension_rows(entry: DimensionReport) -> dict[str, Mapping[str, Figure]]:
    """What the terminal shows of a dimension; the page and the JSON have the rest."""
    rows: dict[str, Mapping[str, Figure]] = {}
    if entry.judge is not None:
        rows["judge and the mean of people"] = entry.judge.figures
        rows |= {f"  {tag}": part.figures for tag, part in entry.judge.slices.items()}
        rows["judge in a person's place, minus that person"] = entry.judge.margin
    rows["a person and the others (the line to beat)"] = entry.people.line
    rows |= {f"  {rater} and the others": figures for rater, figures in entry.people.against_others.items()}
    return rows | {f"{rater} (model) and the mean of people": f for rater, f in entry.models.items()}


def print_item(console: Console, head: str, item: JudgeItem) -> None:
    """A reply to read, shortened."""
    texts = {"seeker": item.scenario.query, "response": item.sections.response}
    console.print(f"\n[bold]{escape(head)}[/bold]")
    for name, text in texts.items():
        if text:
            short = text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"
            console.print(f"  {name}: {short}", markup=False, highlight=False)


def _cell(figure: Figure) -> str:
    if figure.value is None:
        return "none"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.2f}"
    return f"{figure.value:.2f} ({figure.low:.2f} .. {figure.high:.2f})"
