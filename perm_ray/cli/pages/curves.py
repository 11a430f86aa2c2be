"""Which curves the report draws, and what they are made of: the metrics of a run as chart descriptions. Pure.

`page.py` puts them into the page as data, `templates/charts.js` draws them. A chart whose metrics the run
does not have is left out, and `Curves.left_out` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from perm_ray.cli.pages.plans import (
    Plan,
    answer_plans,
    judge_plans,
    load_plans,
    perspective_plans,
    policy_plans,
    reward_plans,
)
from perm_ray.cli.pages.run_data import RunReport

Rows = Sequence[Mapping[str, float]]
Kind = Literal["line", "stack"]
_MAX_LINES = 8  # of one chart: as many as there are colours
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Series:
    """One line: a value for each of the chart's steps (None: a gap), and a band of so much around it."""

    name: str
    values: tuple[float | None, ...]
    band: tuple[float | None, ...] = ()
    color: int | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """One drawing. `low` and `high` bound its axis where the values cannot pass them."""

    title: str
    says: str  # what it shows, in one sentence
    steps: tuple[int, ...]
    series: tuple[Series, ...]
    low: float | None = None
    high: float | None = None
    kind: Kind = "line"


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """All charts, in sections; where the time went; metrics that no chart has; what could not be drawn."""

    sections: tuple[Section, ...]
    timeline: tuple[Chart, ...]
    others: tuple[Chart, ...]
    left_out: tuple[str, ...]


def curves_of(report: RunReport) -> Curves:
    """Every chart that the run has the metrics for."""
    left_out: list[str] = []
    perspectives = report.perspectives
    plans = {
        "Reward": reward_plans(),
        "Perspectives": perspective_plans(perspectives),
        "Answers": answer_plans(),
        "Policy": policy_plans(),
        "Judges": judge_plans(perspectives),
    }
    sections = []
    for title, section in plans.items():
        charts = tuple(_drawn(section, report.metrics, left_out))
        if title == "Reward":
            charts += tuple(_heldout_charts(report))
        sections.append(Section(title, charts))
    sections.append(Section("Slices", tuple(_slice_charts(report.metrics))))
    sections.append(Section("Probes", tuple(_probe_charts(report))))
    load = load_plans(perspectives)
    timeline = (*_stage_charts(report.metrics), *_drawn(load, report.metrics, left_out))
    drawn = [plan for section in (*plans.values(), load) for plan in section]
    return Curves(
        tuple(section for section in sections if section.charts),
        timeline,
        tuple(_other_charts(report, drawn)),
        tuple(left_out),
    )


# ---- from plans and rows to charts -----------------------------------------------------------


def _drawn(plans: Sequence[Plan], rows: Rows, left_out: list[str]) -> Iterator[Chart]:
    steps = _steps(rows)
    for plan in plans:
        found = []
        for number, (name, metric, *band) in enumerate(plan.lines):
            if any(metric in row for row in rows):
                color = plan.colors[number] if plan.colors else number
                around = _column(rows, band[0]) if band else ()
                found.append(Series(name, _column(rows, metric), around, color))
        if found:
            yield Chart(plan.title, plan.says, steps, tuple(found[:_MAX_LINES]), plan.low, plan.high)
        elif rows:
            left_out.append(f"{plan.title} ({', '.join(line[1] for line in plan.lines) or 'no judges'})")


def _stage_charts(rows: Rows) -> Iterator[Chart]:
    """What each step's time went into; what no phase accounts for is the rest."""
    names = list(dict.fromkeys(name for row in rows for name in row if _is_phase(name)))
    if not names or not any("time/step_s" in row for row in rows):
        return
    phases = [Series(_phase(name), _column(rows, name)) for name in names]
    rest = [
        max(0.0, row["time/step_s"] - sum(row.get(name, 0.0) for name in names))
        if "time/step_s" in row
        else None
        for row in rows
    ]
    series = (*phases, Series("rest", tuple(map(_rounded, rest))))
    says = "seconds of each step, by what the loop did"
    yield Chart("A step's time", says, _steps(rows), series[:_MAX_LINES], low=0, kind="stack")


def _is_phase(name: str) -> bool:
    return name.startswith("time/") and name.endswith("_s") and name != "time/step_s"


def _phase(name: str) -> str:
    return name.removeprefix("time/").removesuffix("_s")


def _heldout_charts(report: RunReport) -> Iterator[Chart]:
    """Of the answers themselves, since evaluations between the first and the last are in no other file."""
    means = {}
    for step, rows in report.heldout.items():
        rewards = [row.reward.value for row in rows if row.reward is not None]
        means[step] = fmean(rewards) if rewards else None
    if len(means) > 1:
        line = Series("held-out reward", tuple(map(_rounded, means.values())))
        yield Chart("Held-out reward", "mean over the held-out scenarios, by step", tuple(means), (line,))


def _slice_charts(rows: Rows) -> Iterator[Chart]:
    counts: dict[str, dict[str, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("slice/") and name.endswith("/count"):
                tag, _, tagged = name.removeprefix("slice/").removesuffix("/count").partition("/")
                of_tag = counts.setdefault(tag, {})
                of_tag[tagged] = of_tag.get(tagged, 0.0) + value
    for tag, found in counts.items():
        values = sorted(found, key=lambda value: (-found[value], value))[:_MAX_LINES]
        lines = [Series(value, _column(rows, f"slice/{tag}/{value}/reward")) for value in values]
        says = "mean reward" + (
            f", of the {len(values)} most frequent of {len(found)}" if len(found) > len(values) else ""
        )
        yield Chart(f"Reward by {tag}", says, _steps(rows), tuple(lines))


def _probe_charts(report: RunReport) -> Iterator[Chart]:
    rows = report.probes
    for view in report.perspectives:
        start = f"probe/{view.name}/"
        kinds = dict.fromkeys(
            name.removeprefix(start) for row in rows for name in row if name.startswith(start)
        )
        passed = Series("in the right order", _column(rows, f"{start}pass_rate"))
        if "pass_rate" in kinds:
            says = "share of the pairs of texts that the judge put in the right order"
            yield Chart(f"Probes passed: {view.name}", says, _steps(rows), (passed,), 0, 1)
        attacks = [kind for kind in kinds if kind not in ("pass_rate", "failed")]
        highest = sorted(attacks, key=lambda kind: -max(row.get(start + kind, 0.0) for row in rows))[
            :_MAX_LINES
        ]
        if highest:
            says = "share of the scale that an attack earns" + (
                f"; the {len(highest)} that earn most of {len(attacks)}"
                if len(attacks) > len(highest)
                else ""
            )
            lines = tuple(Series(kind, _column(rows, start + kind)) for kind in highest)
            yield Chart(f"Attacks on {view.name}", says, _steps(rows), lines, 0, 1)


def _other_charts(report: RunReport, drawn: Sequence[Plan]) -> Iterator[Chart]:
    """A chart for each metric that no plan names: also of those that this file has never heard of."""
    known = {metric for plan in drawn for line in plan.lines for metric in line[1:]}
    for span in report.spans:
        if span.name not in known and not span.name.startswith("slice/") and not _is_phase(span.name):
            values = _column(report.metrics, span.name)
            yield Chart(
                span.name, "", _steps(report.metrics), (Series(span.name.rpartition("/")[2], values),)
            )


def _steps(rows: Rows) -> tuple[int, ...]:
    return tuple(int(row["step"]) for row in rows)


def _column(rows: Rows, metric: str) -> tuple[float | None, ...]:
    return tuple(_rounded(row.get(metric)) for row in rows)


def _rounded(value: float | None) -> float | None:
    """As many digits as a person reads off a curve, so that the page stays small."""
    return None if value is None else float(f"{value:.{_DIGITS}g}")


# ---- in words --------------------------------------------------------------------------------


def waits_in_words(report: RunReport) -> tuple[str, ...]:
    """Who waited for whom, in sentences."""
    rows = [row for row in report.metrics if row.get("time/step_s")]
    if not rows:
        return ()
    whole = sum(row["time/step_s"] for row in rows)
    names = dict.fromkeys(name for row in rows for name in row if _is_phase(name))
    shares = {_phase(name): sum(row.get(name, 0.0) for row in rows) / whole for name in names}
    listed = ", ".join(
        f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda each: -each[1])
    )
    overlap = " They overlap." if sum(shares.values()) > 1.02 else ""
    sentences = [f"Of the steps' time: {listed}.{overlap}"]
    waits = [
        {view.name: row[key] for view in report.perspectives if (key := f"judge/{view.name}/wait_s") in row}
        for row in rows
    ]
    last = [max(wait, key=wait.__getitem__) for wait in waits if wait and max(wait.values()) > 0]
    if last:
        name = max(dict.fromkeys(last), key=last.count)
        mean_s = fmean(wait[name] for wait in waits if name in wait)
        sentences.append(
            f"After sampling, the step waited longest for {name} on {last.count(name)} of {len(waits)} steps "
            f"({mean_s:.1f} s on average): a further replica helps there first."
        )
    elif any(waits):
        sentences.append("No step waited for a judge after sampling.")
    return tuple(sentences)
