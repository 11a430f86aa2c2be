"""`perm-ray evaluate perm|truth|emobench MODEL ...`: any models on the same items, with paired differences.

Each writes `evaluation.json`, a page and every answer into a folder; run it again to go on after a stop.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from perm_ray.cli.pages.base import page_template
from perm_ray.config import CONFIGS
from perm_ray.config.load import load_config
from perm_ray.config.schema import Config
from perm_ray.data.benchmark_items import TRUTH, BenchmarkItem, read_emobench, read_truth
from perm_ray.errors import DataError
from perm_ray.evaluation.item_scores import chance_levels
from perm_ray.evaluation.model_comparison import Measured, ModelFigures, compare_models
from perm_ray.evaluation.pairwise import bradley_terry
from perm_ray.experience import Report
from perm_ray.files import write_json_atomic, write_text_atomic
from perm_ray.runs.candidates import models_and_overrides
from perm_ray.runs.evaluate import evaluate, plan_evaluation
from perm_ray.runs.evaluate_eqbench3 import (
    evaluate_eqbench3,
    fitted_requests,
    official_score,
    plan_eqbench3,
)
from perm_ray.runs.evaluate_items import evaluate_items, plan_items
from perm_ray.runs.evaluate_pairs import compare_pairs, plan_pairs
from perm_ray.runs.signals import StopSignals
from perm_ray.tracking.mlflow_report import log_report
from perm_ray.tracking.mlflow_run import metric_name

Answers = Mapping[str, Sequence[Measured]]
_Plan = TypeVar("_Plan")
_Found = TypeVar("_Found")
_TEMPLATE = Path(__file__).parent / "pages" / "templates" / "evaluation.html.j2"


class _Table(NamedTuple):
    """A table of texts, for the terminal and for the page."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]] = ()

    def show(self, console: Console) -> None:
        """Print it."""
        table = Table(title=self.caption, title_justify="left")
        for column in self.columns:
            table.add_column(column, overflow="fold")
        for row in self.rows:
            table.add_row(*map(escape, row))
        console.print(table)


_PAIRS = _Table(
    "Win rate of the first over the second, with its 95% interval",
    ("first", "second", "win rate", "at equal length", "consistent", "ties", "unanswered"),
)
_STRENGTHS = _Table("Strength in logits (Bradley-Terry)", ("model", "strength"))


def perm(options: argparse.Namespace) -> int:
    """Have the models answer scenarios and be judged from every perspective; print the table."""
    data = [] if options.data is None else [f"data.heldout={options.data}"]
    config, models = _given(options, data)
    plan = plan_evaluation(config, models, options.limit)
    answers = with_progress(evaluate, plan, options.out)
    judges = {name: plan.config.models[pool.model].model for name, pool in plan.config.judges.pools.items()}
    graded = ", ".join(f"{name}: {model}" for name, model in judges.items())
    remarks = [
        f"Graded by {graded}. A higher score says that these judges gave more, under these rubrics; read the "
        "answers, which lie beside this page in answers/."
    ]
    return report(options, config, answers, "Evaluation from four perspectives", remarks, config.data.heldout)


def truth(options: argparse.Namespace) -> int:
    """Ask the models what warmth training is known to cost; print the table."""
    source = options.data or TRUTH
    remarks = [
        "Facts under emotional pressure, harmful validation, boundaries, crisis replies and sycophancy: "
        "choices by log-probability, in every rotation, and strict rules on what the model writes. No judge "
        "is asked."
    ]
    return _items(options, read_truth(source), "Truth and boundaries", remarks, source)


def emobench(options: argparse.Namespace) -> int:
    """Ask the models EmoBench's questions; print the table."""
    if options.data is None:
        raise DataError("--data must be EmoBench's folder `data`, found none: give it.")
    remarks = [
        "EmoBench (arXiv 2402.12071), EU: emotion and cause both right. Choices by log-probability, in every "
        "rotation, asked in words of ours: not comparable with published figures, but between these models."
    ]
    return _items(options, read_emobench(Path(options.data)), "EmoBench", remarks, options.data)


def eqbench3(options: argparse.Namespace) -> int:
    """Run EQ-Bench 3's official runner on the models; print the table."""
    config, models = _given(options, [])
    names = [name.strip() for name in (options.scenarios or "").split(",") if name.strip()]
    clone = options.eqbench_dir.expanduser()
    plan = plan_eqbench3(config, models, clone, names, options.judge, options.python or sys.executable)
    answers = with_progress(evaluate_eqbench3, plan, options.out)
    scores = [f"{each.name}: {official_score(plan, options.out, each)}" for each in plan.candidates]
    remarks = [
        f"The runner's own score: {'; '.join(scores)}. Graded by {plan.judge_model.model}; criteria and "
        "score are from 0 to 20, the means of those scenarios whose judgment could be parsed.",
        *filter(None, (fitted_requests(plan, options.out, each) for each in plan.candidates)),
    ]
    if not plan.comparable:
        remarks.append("Not comparable to the public board: another judge, or not all scenarios.")
    for remark in remarks:
        print(remark)
    return report(options, config, answers, "EQ-Bench 3", remarks, str(clone))


def compare(options: argparse.Namespace) -> int:
    """Have one judge choose between the models' replies, in both orders; print the tables."""
    data = [] if options.data is None else [f"data.heldout={options.data}"]
    config, models = _given(options, data)
    plan = plan_pairs(config, models, options.limit, options.judge)
    results = with_progress(compare_pairs, plan, options.out)
    found = [each.figures(config.run.seed) for each in results]
    strengths = bradley_terry({each.names: [one.win for one in each.found] for each in results})
    judge = config.models[plan.judge].model
    title = f"Replies preferred by {judge}, without a rubric, in both orders, {len(plan.scenarios)} scenarios"
    rows = [
        (
            each.first,
            each.second,
            f"{each.win_rate.mean:.2f} ({each.win_rate.low:.2f} .. {each.win_rate.high:.2f})",
            f"{each.length_controlled:.2f}",
            f"{each.consistency:.2f}",
            f"{each.ties:.2f}",
            str(each.unanswered),
        )
        for each in found
    ]
    strength = [(name, f"{value:+.2f}") for name, value in sorted(strengths.items(), key=lambda p: -p[1])]
    tables = [_PAIRS._replace(rows=rows), _STRENGTHS._replace(rows=strength)]
    console = Console()
    console.print(escape(title))
    for each in tables[: 1 if len(strength) == 2 else 2]:
        each.show(console)
    document = {"title": title, "pairs": [asdict(each) for each in found], "strengths": strengths}
    page = {"title": "Models compared by pairs", "remarks": [title], "tables": tables}
    metrics = {f"{each.first}/win_rate_over/{each.second}": each.win_rate.mean for each in found}
    return _write(options, config, document, page, metrics, config.data.heldout, console)


def _items(
    options: argparse.Namespace, items: Sequence[BenchmarkItem], title: str, remarks: Sequence[str], data: str
) -> int:
    """Ask the items, or so many of them evenly spread over the file, and report."""
    config, models = _given(options, [])
    names = list(dict.fromkeys(item.item_id for item in items))
    count = len(names) if options.limit is None else min(options.limit, len(names))
    if count < 2:
        raise DataError(f"Models are compared on 2 items or more, found {count}: give more.")
    wanted = {names[index * len(names) // count] for index in range(count)}
    kept = [item for item in items if item.item_id in wanted]
    answers = with_progress(evaluate_items, plan_items(config, models, kept), options.out)
    levels = ", ".join(f"{name} {level:.2f}" for name, level in chance_levels(kept).items())
    return report(options, config, answers, title, [*remarks, f"A guess is right in: {levels}."], data)


def _given(options: argparse.Namespace, data: Sequence[str]) -> tuple[Config, list[str]]:
    """Return the configuration, and the models among the arguments."""
    models, overrides = models_and_overrides(options.arguments)
    limit = getattr(options, "limit", None)
    if limit is not None and limit < 2:
        raise DataError(f"--limit must be 2 or more, found {limit}.")
    return load_config(options.config or CONFIGS / "local.yaml", [*data, *overrides]), models


def with_progress(
    run: Callable[[_Plan, Path, StopSignals, Report], _Found], plan: _Plan, folder: Path
) -> _Found:
    """Evaluate, with a bar that shows how far it is."""
    with StopSignals() as stop, Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("")

        def show(phase: str, done: int, total: int) -> None:
            progress.update(task, description=escape(phase), completed=done, total=total)

        return run(plan, folder, stop, show)


def report(
    options: argparse.Namespace,
    config: Config,
    answers: Answers,
    title: str,
    remarks: Sequence[str],
    data: str,
    children: Mapping[str, Mapping[str, float]] | None = None,
) -> int:
    """Write the figures and the page, print the table, and log to MLflow when asked; `children` are the
    figures of runs below this one there."""
    console = Console()
    figures = compare_models(answers, config.run.seed)
    document = {"title": title, "remarks": list(remarks), "models": [asdict(each) for each in figures]}
    page = {"title": title, "remarks": remarks, "figures": figures, "measures": _measures(figures)}
    means = {f"{each.model}/{name}": value for each in figures for name, value in each.means.items()}
    _show(figures, console)
    return _write(options, config, document, page, means, data, console, children)


def _write(
    options: argparse.Namespace,
    config: Config,
    document: Mapping[str, object],
    page: Mapping[str, object],
    metrics: Mapping[str, float],
    data: str,
    console: Console,
    children: Mapping[str, Mapping[str, float]] | None = None,
) -> int:
    """Write figures and page into the folder, and log to MLflow when asked."""
    folder = options.out
    write_json_atomic(folder / "evaluation.json", document)
    template = page_template(_TEMPLATE, {"cell": cell})
    write_text_atomic(folder / "evaluation.html", template.render({"figures": [], "tables": []} | dict(page)))
    console.print(f"Page: {folder / 'evaluation.html'}", markup=False, soft_wrap=True)
    if options.mlflow:
        files = [folder / "evaluation.json", folder / "evaluation.html"]
        params = {"data": data, "models": ", ".join(options.arguments)}
        named = _named(metrics)
        below = {name: _named(figures) for name, figures in (children or {}).items()}
        uri = log_report(config.tracking, f"evaluation-{folder.name}", folder, named, params, files, below)
        console.print(f"MLflow: {uri}", markup=False, soft_wrap=True)
    return 0


def _named(metrics: Mapping[str, float]) -> dict[str, float]:
    return {metric_name(name): value for name, value in metrics.items()}


def _show(figures: Sequence[ModelFigures], console: Console) -> None:
    """Print a row for each measure and a column for each model."""
    title = f"{figures[0].num_answers} answers each; in brackets the difference from the first, 95% interval"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for each in figures:
        table.add_column(escape(each.model), justify="right")
    for name in _measures(figures):
        table.add_row(name, *(cell(each, name) for each in figures))
    console.print(table)


def cell(figures: ModelFigures, name: str) -> str:
    """Return a mean, with its paired difference from the first model where there is one."""
    if name not in figures.means:
        return "none"
    text, difference = f"{figures.means[name]:.3f}", figures.differences.get(name)
    if difference is None:
        return text
    most = max(each.pairs for each in figures.differences.values())
    few = f"; {difference.pairs} pairs" if difference.pairs < most else ""
    return f"{text} ({difference.mean:+.3f}, {difference.low:+.3f} .. {difference.high:+.3f}{few})"


def _measures(figures: Sequence[ModelFigures]) -> list[str]:
    return list(dict.fromkeys(name for each in figures for name in each.means))
