"""`perm-ray plan`: the arithmetic of a configuration, before there is a machine that could run it.

Loads no model, no torch and no Ray, and downloads nothing. Exit code 2 says that the run cannot fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perm_ray.config import CONFIGS
from perm_ray.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from perm_ray.cluster.planning.plan import Plan, Role


def parser() -> argparse.ArgumentParser:
    """The options of `perm-ray plan`."""
    parser = argparse.ArgumentParser(
        prog="perm-ray plan",
        description="What a configuration takes: memory of every role and GPU, and a step's time. Starts "
        "nothing, downloads nothing. GB is 2^30 bytes.",
    )
    parser.add_argument("--config", type=Path, default=None, help="the same as CONFIG", metavar="FILE")
    parser.add_argument(
        "--gpu-memory",
        type=float,
        default=80.0,
        help="of one GPU (default: 80; MiB / 1024 of nvidia-smi)",
        metavar="GB",
    )
    parser.add_argument(
        "--gpus-per-node", type=int, default=8, help="GPUs of one node (default: 8)", metavar="N"
    )
    parser.add_argument(
        "--host-memory",
        type=float,
        default=None,
        help="host memory of all nodes together (default: this machine's without GPUs, else not checked)",
        metavar="GB",
    )
    parser.add_argument(
        "--tokens-per-s",
        action="append",
        default=[],
        help="tokens a second of one GPU (or actor, without GPUs): rollout, judge or train; may be repeated "
        "(default: assumed from the model's size)",
        metavar="ROLE=N",
    )
    parser.add_argument("--json", type=Path, default=None, help="also write the figures here", metavar="FILE")
    parser.add_argument(
        "--lines", action="store_true", help="print the figures as comment lines for a configuration"
    )
    parser.add_argument(
        "arguments",
        nargs="*",
        help="YAML file (default: configs/local.yaml), and configuration values such as trainer.zero_stage=3",
        metavar="CONFIG | a.b=c",
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Returns the exit code; raises `PermRayError`s for `cli.py` to print."""
    options = parser().parse_intermixed_args(arguments)
    file, overrides = _file_and_overrides(options)
    rates = _rates(options.tokens_per_s)
    for name in ("gpu_memory", "gpus_per_node", "host_memory"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be greater than 0, found {value:g}.")

    from rich.console import Console

    from perm_ray.cluster.planning.memory import GB
    from perm_ray.cluster.planning.plan import Machine, make_plan, plan_lines
    from perm_ray.config.load import load_config

    config = load_config(file, overrides)
    host = options.host_memory
    if host is None and config.trainer.num_gpus == 0:
        import psutil

        host = psutil.virtual_memory().total / GB
    machine = Machine(
        gpu_bytes=int(options.gpu_memory * GB),
        gpus_per_node=options.gpus_per_node,
        host_bytes=None if host is None else int(host * GB),
    )
    plan = make_plan(config, machine, rates)
    if options.lines:
        print("\n".join(f"# plan: {line}" for line in plan_lines(plan)))
    else:
        _print(plan, Console(width=None if sys.stdout.isatty() else 132))
    if options.json is not None:
        from perm_ray.files import write_json_atomic

        write_json_atomic(options.json, plan_json(plan))
    if plan.problems:
        more = len(plan.problems) - 1
        raise ConfigError(plan.problems[0] + (f" ({more} more above.)" if more and not options.lines else ""))
    return 0


def _file_and_overrides(options: argparse.Namespace) -> tuple[Path, list[str]]:
    files = [argument for argument in options.arguments if "=" not in argument]
    overrides = [argument for argument in options.arguments if "=" in argument]
    given = [*([options.config] if options.config else []), *map(Path, files)]
    if len(given) > 1:
        raise ConfigError(f"One configuration can be planned at a time, found {', '.join(map(str, given))}.")
    return (given[0] if given else CONFIGS / "local.yaml"), overrides


def _rates(texts: Sequence[str]) -> dict[str, float]:
    from perm_ray.cluster.planning.time import ROLES

    rates = {}
    for text in texts:
        role, _, number = text.partition("=")
        try:
            rate = float(number)
        except ValueError:
            rate = 0.0
        if role not in ROLES or not 0 < rate < float("inf"):
            raise ConfigError(
                f"--tokens-per-s must be ROLE=N, a role of {', '.join(ROLES)} and a number above 0, found "
                f"{text!r}."
            )
        rates[role] = rate
    return rates


# ---- the page -------------------------------------------------------------------------------


def _print(plan: Plan, console: Console) -> None:
    from perm_ray.cluster.planning.plan import gb, gpu_rows

    console.print(_engine_table(plan))
    console.print(_rank_table(plan.roles[-1]))
    if plan.on_gpus:
        table = _table("Who sits where (Ray may choose another order)", ["GPU", "actors"], left=2)
        for where, who in gpu_rows(plan):
            table.add_row(where, ", ".join(who))
        console.print(table)
    console.print(_time_table(plan))
    console.print(f"Host memory of all nodes together: {gb(plan.host_total)}", highlight=False)
    for kind, sentences in (("Note", plan.notes), ("Does not fit", plan.problems)):
        for sentence in sentences:
            console.print(f"{kind}: {sentence}", highlight=False, markup=False)


def _table(title: str, columns: Sequence[str], left: int = 1) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption_justify="left", min_width=len(title) + 4)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", no_wrap=index == 0)
    return table


def _narrow(name: str) -> str:
    return name.replace(" ", "\n")


def _engine_table(plan: Plan) -> Table:
    from perm_ray.cluster.planning.memory import EngineMemory
    from perm_ray.cluster.planning.plan import term_sizes

    where = "each of its GPUs" if plan.on_gpus else "host memory"
    engines = [(role, role.memory) for role in plan.roles if isinstance(role.memory, EngineMemory)]
    terms = list(term_sizes(engines[0][1]))
    table = _table(
        f"Engines: GB of {where}", ["", *map(_narrow, terms), "together", "sequences", "bytes a\ntoken"]
    )
    for role, memory in engines:
        sizes = term_sizes(memory)
        table.add_row(
            f"{role.actors}\n{role.model}",
            *(_cell(sizes[name]) for name in terms),
            _of(role),
            str(memory.sequences),
            f"{memory.kv_bytes_per_token:,}",
        )
    table.caption = "sequences: how many of full length (max_model_len) the KV cache holds"
    return table


def _rank_table(role: Role) -> Table:
    from perm_ray.cluster.planning.memory import GB, RankMemory
    from perm_ray.cluster.planning.plan import term_sizes

    assert isinstance(role.memory, RankMemory)
    phases = role.memory.phases
    where = "its GPU" if role.budget is not None else "host memory"
    title = f"{role.actors} ({role.model}): GB of {where}, phase by phase"
    table = _table(title, ["", *(terms.phase for terms in phases)])
    sizes = [term_sizes(terms) for terms in phases]
    for name in sizes[0]:
        table.add_row(name, *(_cell(size[name]) for size in sizes))
    table.add_section()
    of = f" of {role.budget / GB:g}" if role.budget is not None else ""
    table.add_row("together", *(f"{terms.total / GB:.1f}{of}" for terms in phases))
    return table


def _time_table(plan: Plan) -> Table:
    unit = "GPUs" if plan.on_gpus else "actors"
    title = (
        f"A step of {plan.time.seconds:.0f} s, all sequences at full length (an estimate, not a measurement)"
    )
    table = _table(title, ["phase", "tokens", f"tokens/s of all {unit}", "seconds", "rate"])
    for phase in plan.time.phases:
        told = "assumed" if phase.assumed else "given"
        cells = (f"{phase.tokens:,}", f"{phase.tokens_per_s:,.0f}", f"{phase.seconds:.1f}", told)
        table.add_row(phase.role, *(cells if phase.tokens else ("0", "", "0.0", "elsewhere")))
    table.add_row("weight sync", "", "", f"{plan.time.sync_s:.1f}", "assumed")
    table.caption = (
        "sampling and judging overlap: the longer of the two counts"
        if plan.time.overlaps
        else "sampling and judging share the cores: both count"
    )
    return table


def _cell(size: int) -> str:
    from perm_ray.cluster.planning.memory import GB

    return f"{size / GB:.1f}" if size else "-"


def _of(role: Role) -> str:
    from perm_ray.cluster.planning.memory import GB

    of = f" of {role.budget / GB:g}" if role.budget is not None else ""
    return f"{role.total / GB:.1f}{of}"


def plan_json(plan: Plan) -> dict[str, object]:
    """The figures for a program: bytes, tokens and seconds."""
    from perm_ray.cluster.planning.memory import RankMemory

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
        "seats": [dataclasses.asdict(taken) for taken in plan.seats],
        "host_bytes": plan.host_total,
        "step": {
            "seconds": plan.time.seconds,
            "sync_s": plan.time.sync_s,
            "phases": [{**dataclasses.asdict(phase), "seconds": phase.seconds} for phase in plan.time.phases],
        },
        "problems": list(plan.problems),
        "notes": list(plan.notes),
    }


if __name__ == "__main__":
    from perm_ray.cli.main import run_verb

    sys.exit(run_verb("plan", sys.argv[1:]))
