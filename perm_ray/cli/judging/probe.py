"""`perm-ray judge probe`: do the judges withstand attacks, and order what is plain to order?

Judges every probe with the pools of a configuration and prints, for each kind of probe and each
perspective, how many pairs of texts were put in the right order and what the worse texts were given.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from perm_ray.cli.judging.judged import judge_all
from perm_ray.config.load import load_config
from perm_ray.errors import DataError
from perm_ray.evaluation.probes.probe_report import Outcome, ProbeReport, probe_report
from perm_ray.evaluation.probes.probe_set import BUILTIN_PROBES, Probe, load_probes, probe_items
from perm_ray.files import write_json_atomic
from perm_ray.judges.startup import build_perspectives
from perm_ray.types import Sections

SHOWN_FAILURES = 10


def run(options: argparse.Namespace) -> int:
    """Judge every probe and print what became of it."""
    config = load_config(options.config, options.overrides)
    probes = chosen(load_probes(options.probes or BUILTIN_PROBES), options.kinds)
    console = Console()
    judgments = judge_all(config, probe_items(probes), console)
    report = probe_report(probes, judgments, build_perspectives(config.judges))
    if options.json is not None:
        write_json_atomic(options.json, report.as_dict())
    show(report, console, verbose=options.verbose)
    return 0


def chosen(probes: Sequence[Probe], kinds: str | None) -> tuple[Probe, ...]:
    """Return the probes of the kinds in a comma-separated list, or all. Raises `DataError`."""
    if kinds is None:
        return tuple(probes)
    wanted = [kind.strip() for kind in kinds.split(",")]
    known = tuple(dict.fromkeys(probe.kind for probe in probes))
    unknown = [kind for kind in wanted if kind not in known]
    if unknown:
        raise DataError(f"--kinds may name {', '.join(known)}, found {', '.join(map(repr, unknown))}.")
    return tuple(probe for probe in probes if probe.kind in wanted)


def show(report: ProbeReport, console: Console, verbose: bool = False) -> None:
    """Print the table of pass rates, what could not be judged and, if asked, the worst failures."""
    console.print(_table(report))
    unjudged = Counter(outcome.why for outcome in report.outcomes if outcome.passed is None)
    for why, count in unjudged.most_common(SHOWN_FAILURES):
        console.print(f"{count} could not be judged: {why}", markup=False)
    failures = report.failures()
    if verbose:
        for outcome in failures[:SHOWN_FAILURES]:
            console.print(_failure(outcome), markup=False, highlight=False)
    elif failures:
        console.print(f"{len(failures)} did not pass: --verbose shows the worst.")


def _table(report: ProbeReport) -> Table:
    """Return a table with a row for each kind of probe and a column for each perspective."""
    table = Table(
        title="Passed of judged, and the share of the scale that the worse texts were given",
        title_justify="left",
    )
    table.add_column("kind")
    for name in (*report.perspectives, "together"):
        table.add_column(name, justify="right")
    columns = (*report.perspectives, None)
    for kind in report.kinds:
        table.add_row(kind, *(_cell(report, name, kind) for name in columns))
    table.add_section()
    table.add_row("all", *(_cell(report, name, None) for name in columns))
    table.add_row("pass rate", *(_rate(report, name) for name in columns))
    table.add_row("95% interval", *(_interval(report, name) for name in columns))
    return table


def _cell(report: ProbeReport, perspective: str | None, kind: str | None) -> str:
    rate, score = report.pass_rate(perspective, kind), report.attack_score(perspective, kind)
    given = "" if score is None else f"  {score:.2f}"
    return f"{rate.passed}/{rate.judged}{given}" if rate.judged or rate.failed else ""


def _rate(report: ProbeReport, perspective: str | None) -> str:
    rate = report.pass_rate(perspective).rate
    return "" if rate is None else f"{rate:.0%}"


def _interval(report: ProbeReport, perspective: str | None) -> str:
    interval = report.pass_rate(perspective).interval()
    return "" if interval is None else f"{interval[0]:.0%} .. {interval[1]:.0%}"


def _failure(outcome: Outcome) -> str:
    probe = outcome.probe
    expected = "higher than" if probe.relation == "above" else f"no more than {probe.margin:g} below"
    return "\n".join(
        [
            "",
            f"{probe.probe_id}, {outcome.perspective}: {outcome.better:.3f} should be {expected} "
            f"{outcome.worse:.3f}",
            f"  to:     {probe.scenario.query}",
            f"  better: {_text(probe.better)}",
            f"  worse:  {_text(probe.worse)}",
        ]
    )


def _text(sections: Sections) -> str:
    text = sections.analysis if sections.response is None else sections.response
    return (text or "").strip().replace("\n", "\n          ") or "(empty)"
