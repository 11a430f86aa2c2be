"""The end of a run, in one file for programs and one table for people.

The driver calls `summarise` on the rows of `metrics.jsonl`, writes the result as `summary.json` and
prints it with `print_summary`. Pure but for the printing.

`extra` adds what the rows do not know. These keys are understood by the table:

    evaluation    {"before": {metric: value}, "after": {...}, "difference": {"mean", "low", "high"}}
    run_directory the path of the run directory
    mlflow_uri    the tracking URI, absent when nothing was tracked
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from perm_ray.config.redact import redact_text
from perm_ray.tracking.tracker import EndState


def summarise(
    rows: Sequence[Mapping[str, float]],
    status: EndState,
    wall_time_s: float,
    extra: Mapping[str, object],
) -> dict[str, object]:
    """First, last and mean of every metric, over the steps that have it. `rows` is in step order."""
    series: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                series.setdefault(name, []).append(value)
    metrics = {
        name: {"first": values[0], "last": values[-1], "mean": math.fsum(values) / len(values)}
        for name, values in series.items()
    }
    return {"status": status, "steps": len(rows), "wall_time_s": wall_time_s, "metrics": metrics, **extra}


def summary_table(summary: Mapping[str, object]) -> Table:
    """Return a table of where the run began and ended: scores, reward, format, held-out evaluation."""
    title = f"{summary['status']}: {summary['steps']} steps in {duration(_number(summary, 'wall_time_s'))}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("first", "last", "change"):
        table.add_column(column, justify="right")
    metrics = _section(summary, "metrics")
    scores = [name for name in metrics if name.startswith("judge/") and name.endswith("/mean")]
    for name in ["reward/mean", *scores, "format/valid"]:
        if name in metrics:
            _add(table, name, _section(metrics, name), "first", "last")
    evaluation = _section(summary, "evaluation")
    before, after = _section(evaluation, "before"), _section(evaluation, "after")
    shared = [name for name in before if name in after and not name.startswith("slice/")]
    if shared:
        table.add_section()
        table.add_row("[bold]held-out scenarios[/bold]", "before", "after", "")
    for name in shared:
        _add(table, name, {"before": before[name], "after": after[name]}, "before", "after")
    difference = _section(evaluation, "difference")
    if difference:
        low, high = _number(difference, "low"), _number(difference, "high")
        table.add_row("reward, paired", "", "", f"{_number(difference, 'mean'):+.3f}")
        table.add_row("  95% interval", "", "", f"{low:+.3f} .. {high:+.3f}")
    training = _section(_section(evaluation, "training_judges"), "difference")
    if training:
        low, high = _number(training, "low"), _number(training, "high")
        table.add_row("the training judges' reward", "", "", f"{_number(training, 'mean'):+.3f}")
        table.add_row("  95% interval", "", "", f"{low:+.3f} .. {high:+.3f}")
    return table


def where_to_look(summary: Mapping[str, object]) -> list[str]:
    """Lines that say where the files are and how to see the curves. Not part of the table: a cell
    would break a path that someone wants to copy."""
    lines = []
    if summary.get("run_directory"):
        lines.append(f"Files:  {summary['run_directory']}")
    if summary.get("mlflow_uri"):
        lines.append(f"MLflow: {mlflow_command(str(summary['mlflow_uri']))}")
    return lines


def mlflow_command(uri: str) -> str:
    """Return how a person looks at a tracking URI: a command for a database, the address of a server."""
    if "://" not in uri or uri.startswith(("sqlite:", "file:")):
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1"
    return redact_text(uri)


def print_summary(summary: Mapping[str, object], console: Console) -> None:
    table = summary_table(summary)
    console.print(table if table.row_count else table.title)
    evaluation = _section(summary, "evaluation")
    for name in ("note", "warning"):
        if evaluation.get(name):
            text = f"{name.capitalize()}: {evaluation[name]}."
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    for line in where_to_look(summary):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """1h02m, 3m05s or 42s."""
    whole = max(0, round(seconds)) if math.isfinite(seconds) else 0
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"


def _add(table: Table, name: str, values: Mapping[str, object], first: str, last: str) -> None:
    start, end = _number(values, first), _number(values, last)
    table.add_row(escape(name), f"{start:.3f}", f"{end:.3f}", f"{end - start:+.3f}")


def _section(values: Mapping[str, object], key: str) -> Mapping[str, object]:
    section = values.get(key)
    return section if isinstance(section, Mapping) else {}


def _number(values: Mapping[str, object], key: str) -> float:
    value = values.get(key)
    return float(value) if isinstance(value, int | float) else math.nan
