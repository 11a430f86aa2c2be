"""`perm-ray benchmark NAME`: measure on this machine, print a table, write the figures.

Speeds are ratios or medians within one run, since machines are noisy; each benchmark is a file of
the checkout's `benchmarks/` with a `DESCRIPTION`, a `CONFIG` and `measure(config) -> figures`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util

from rich.console import Console
from rich.table import Table

from perm_ray.cluster.session import authenticate
from perm_ray.config import CONFIGS
from perm_ray.config.load import load_config
from perm_ray.errors import UserError
from perm_ray.files import write_json_atomic


def run(options: argparse.Namespace) -> int:
    """Run one benchmark and print its figures."""
    if importlib.util.find_spec("benchmarks") is None:
        raise UserError(
            "perm-ray benchmark needs a checkout of the project: run it in the folder that has benchmarks/."
        )
    benchmark = importlib.import_module(f"benchmarks.{options.name}")
    config = load_config(options.config or CONFIGS / benchmark.CONFIG, options.overrides)
    authenticate(config.ray.address)
    figures = benchmark.measure(config)
    table = Table(title=benchmark.DESCRIPTION, title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        values = value if isinstance(value, list) else [value]
        table.add_row(name, " ".join(f"{each:.4g}" for each in values))
    Console().print(table)
    if options.json is not None:
        write_json_atomic(options.json, figures)
    return 0
