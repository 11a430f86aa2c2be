"""`perm-ray plan`: compute the memory of a configuration before there is a machine that could run it.

Loads no model, no torch and no Ray, and downloads nothing. Exit code 2 says that the run cannot fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from perm_ray.cluster.planning.memory import GB, EngineMemory, RankMemory, RankTerms
from perm_ray.cluster.planning.plan import Machine, Plan, Role, make_plan, term_sizes
from perm_ray.config import CONFIGS
from perm_ray.config.load import load_config
from perm_ray.errors import ConfigError
from perm_ray.files import write_json_atomic


def run(options: argparse.Namespace) -> int:
    """Print the plan of a configuration. Raises `ConfigError` when it cannot fit."""
    files = [argument for argument in options.arguments if "=" not in argument]
    given = [*([options.config] if options.config else []), *map(Path, files)]
    if len(given) > 1:
        raise ConfigError(f"One configuration can be planned at a time, found {', '.join(map(str, given))}.")
    for name in ("gpu_memory", "gpus_per_node"):
        value = getattr(options, name)
        if value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be greater than 0, found {value:g}.")
    overrides = [argument for argument in options.arguments if "=" in argument]
    config = load_config(given[0] if given else CONFIGS / "local.yaml", overrides)
    machine = Machine(int(options.gpu_memory * GB), options.gpus_per_node)
    plan = make_plan(config, machine)
    _print(plan, Console(width=None if sys.stdout.isatty() else 132))
    if options.json is not None:
        write_json_atomic(options.json, _figures(plan))
    if plan.problems:
        more = len(plan.problems) - 1
        raise ConfigError(plan.problems[0] + (f" ({more} more above.)" if more else ""))
    return 0


def _print(plan: Plan, console: Console) -> None:
    where = "each of its GPUs" if plan.on_gpus else "host memory"
    engines = _memory_table(f"Engines: GB of {where}")
    engines.caption = "sequences: how many of full length (max_model_len) the KV cache holds"
    tables = [engines]
    for role in plan.roles:
        if isinstance(role.memory, EngineMemory):
            sequences, per_token = f"{role.memory.sequences}", f"{role.memory.kv_bytes_per_token:,}"
            tail = {"sequences": sequences, "bytes a token": per_token}
            _add_row(engines, f"{role.actors}\n{role.model}", role, role.memory, tail)
            continue
        where = "its GPU" if role.budget is not None else "host memory"
        tables.append(_memory_table(f"{role.actors} ({role.model}): GB of {where}, phase by phase"))
        for terms in role.memory.phases:
            _add_row(tables[-1], terms.phase, role, terms, {})
    for table in tables:
        console.print(table)
    for kind, sentences in (("Note", plan.notes), ("Does not fit", plan.problems)):
        for sentence in sentences:
            console.print(f"{kind}: {sentence}", highlight=False, markup=False)


def _memory_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", min_width=len(title) + 4)
    table.add_column("", no_wrap=True)
    return table


def _add_row(
    table: Table, name: str, role: Role, terms: EngineMemory | RankTerms, tail: Mapping[str, str]
) -> None:
    """Add the terms (weights, KV cache, ...), their total and `tail`; the first row makes the columns."""
    cells = {term: f"{size / GB:.1f}" if size else "-" for term, size in term_sizes(terms).items()}
    of = f" of {role.budget / GB:g}" if role.budget is not None else ""
    cells |= {"together": f"{terms.total / GB:.1f}{of}", **tail}
    if not table.rows:
        for column in cells:
            table.add_column(column.replace(" ", "\n"), justify="right")
    table.add_row(name, *cells.values())


def _figures(plan: Plan) -> dict[str, object]:
    """Return the figures for a program, in bytes."""
    return {
        "roles": [
            {
                "role": role.name,
                "model": role.model,
                "parameters": role.shape.parameters,
                "count": role.count,
                "num_gpus": role.num_gpus,
                "budget_bytes": role.budget,
                "total_bytes": role.total,
                "memory": dataclasses.asdict(role.memory),
                **({"peak": role.memory.peak.phase} if isinstance(role.memory, RankMemory) else {}),
            }
            for role in plan.roles
        ],
        "problems": list(plan.problems),
        "notes": list(plan.notes),
    }
