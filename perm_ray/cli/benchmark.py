"""`perm-ray benchmark NAME`: measure on this machine, print a table, write the figures.

Speeds are ratios or medians within one run, since machines are noisy; each benchmark is a file of
the checkout's `benchmarks/` with a `DESCRIPTION`, a `CONFIG` and `measure(config) -> figures`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from perm_ray.cluster.session import authenticate
from perm_ray.config import CONFIGS
from perm_ray.config.load import load_config
from perm_ray.errors import UserError

NAMES = ("loop", "rollout", "judging", "learning", "checkpoint", "trainer", "operations")


def parser() -> argparse.ArgumentParser:
    """The options of `perm-ray benchmark`."""
    parser = argparse.ArgumentParser(prog="perm-ray benchmark", description="Measure on this machine.")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--config", type=Path, default=None, help="YAML file", metavar="FILE")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here", metavar="FILE")
    parser.add_argument("overrides", nargs="*", help="configuration values", metavar="a.b=c")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Returns the exit code; raises `PermRayError`s for `cli.py` to print."""
    options = parser().parse_intermixed_args(arguments)
    if importlib.util.find_spec("benchmarks") is None:
        raise UserError(
            "perm-ray benchmark needs a checkout of the project: run it in the folder that has benchmarks/."
        )
    benchmark = importlib.import_module(f"benchmarks.{options.name}")
    config = load_config(options.config or CONFIGS / benchmark.CONFIG, options.overrides)
    authenticate(config.ray.address)
    figures = benchmark.measure(config)
    _report(benchmark.DESCRIPTION, figures, options.json)
    return 0


def _report(title: str, figures: dict[str, float | list[float]], file: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from perm_ray.files import write_json_atomic

    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        text = " ".join(f"{v:.4g}" for v in value) if isinstance(value, list) else f"{value:.4g}"
        table.add_row(name, text)
    Console().print(table)
    if file is not None:
        write_json_atomic(file, figures)


if __name__ == "__main__":
    from perm_ray.cli.main import run_verb

    sys.exit(run_verb("benchmark", sys.argv[1:]))
