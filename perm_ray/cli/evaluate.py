"""`perm-ray evaluate perm MODEL ...`: all four perspectives on any models, on the same scenarios.

Writes `evaluation.json`, a page and every judged answer into a folder; run it again to go on after a stop.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from perm_ray.cli.pages.base import page_template
from perm_ray.config import CONFIGS
from perm_ray.config.load import load_config
from perm_ray.config.schema import Config
from perm_ray.errors import DataError
from perm_ray.evaluation.model_comparison import Answer, ModelFigures, compare_models
from perm_ray.files import write_json_atomic, write_text_atomic
from perm_ray.runs.evaluate import EvaluationPlan, evaluate, plan_evaluation
from perm_ray.runs.signals import StopSignals
from perm_ray.tracking.mlflow_report import log_report
from perm_ray.tracking.mlflow_run import metric_name

_TEMPLATE = Path(__file__).parent / "pages" / "templates" / "evaluation.html.j2"


def run(options: argparse.Namespace) -> int:
    """Evaluate the models, print the table and say where the files are."""
    models = [each for each in options.arguments if "=" not in each or Path(each).exists()]
    overrides = [each for each in options.arguments if each not in models]
    if not models:
        raise DataError("perm-ray evaluate perm expects a model to evaluate, found none: name one or more.")
    if options.limit is not None and options.limit < 2:
        raise DataError(f"--limit must be 2 or more, found {options.limit}.")
    data = [] if options.data is None else [f"data.heldout={options.data}"]
    config = load_config(options.config or CONFIGS / "local.yaml", [*data, *overrides])
    plan = plan_evaluation(config, models, options.limit)
    console = Console()
    answers = _answers(plan, options.out, console)
    figures = compare_models(answers, config.run.seed)
    document = {"setup": plan.setup(), "models": [asdict(each) for each in figures]}
    write_json_atomic(options.out / "evaluation.json", document)
    template = page_template(_TEMPLATE, {"cell": cell})
    judges = {name: config.models[pool.model].model for name, pool in plan.config.judges.pools.items()}
    page = template.render(figures=figures, measures=_measures(figures), judges=judges, plan=plan)
    write_text_atomic(options.out / "evaluation.html", page)
    show(figures, console)
    console.print(f"Page: {options.out / 'evaluation.html'}", markup=False, soft_wrap=True)
    if options.mlflow:
        _log(config, figures, options.out, console)
    return 0


def show(figures: Sequence[ModelFigures], console: Console) -> None:
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
    return f"{text} ({difference.mean:+.3f}, {difference.low:+.3f} .. {difference.high:+.3f})"


def _measures(figures: Sequence[ModelFigures]) -> list[str]:
    return list(dict.fromkeys(name for each in figures for name in each.means))


def _answers(plan: EvaluationPlan, folder: Path, console: Console) -> Mapping[str, Sequence[Answer]]:
    """Evaluate, with a bar that shows how far it is."""
    with StopSignals() as stop, Progress(console=console, transient=True) as progress:
        task = progress.add_task("")

        def report(phase: str, done: int, total: int) -> None:
            progress.update(task, description=escape(phase), completed=done, total=total)

        return evaluate(plan, folder, stop, report)


def _log(config: Config, figures: Sequence[ModelFigures], folder: Path, console: Console) -> None:
    """Log the means as one MLflow run."""
    means = {
        metric_name(f"{each.model}/{name}"): value for each in figures for name, value in each.means.items()
    }
    files = [folder / "evaluation.json", folder / "evaluation.html"]
    params = {"data": config.data.heldout, "models": ", ".join(each.model for each in figures)}
    uri = log_report(config.tracking, f"evaluation-{folder.name}", folder, means, params, files)
    console.print(f"MLflow: {uri}", markup=False, soft_wrap=True)
