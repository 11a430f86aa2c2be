"""The plan of a configuration: each role's memory against what it has, who sits on which GPU, a step's time.

`make_plan` puts `memory.py`, `layout.py` and `time.py` together over a whole `Config`; `perm_ray/cli/plan.py`
prints it. What can never be placed raises `ConfigError` at once; what is too large is in the plan, as
`problems`, so that the figures can be shown with it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from perm_ray.cluster.placement import check_trainer
from perm_ray.cluster.planning.advice import engine_advice, engine_budget, engine_fits, trainer_advice
from perm_ray.cluster.planning.layout import Seat, check_engine, check_nodes, seat
from perm_ray.cluster.planning.memory import (
    GB,
    PROCESS_BYTES,
    EngineMemory,
    RankMemory,
    RankTerms,
    engine_memory,
    rank_memory,
)
from perm_ray.cluster.planning.shapes import ModelShape, model_shape
from perm_ray.cluster.planning.time import StepTime, step_time
from perm_ray.config.engines import EngineConfig
from perm_ray.config.schema import Config
from perm_ray.config.training import SyncConfig

_TIGHT = 0.95  # of a trainer rank's GPU; engines take what they take at their start


@dataclass(frozen=True)
class Machine:
    """What there is to plan for. `host_bytes` None: host memory is not held against anything."""

    gpu_bytes: int = 80 * GB
    gpus_per_node: int = 8
    host_bytes: int | None = None


@dataclass(frozen=True)
class Role:
    """`count` equal actors. `budget` is what each may take of a GPU, None without GPUs."""

    name: str
    model: str
    count: int
    num_gpus: float
    shape: ModelShape
    memory: EngineMemory | RankMemory
    budget: int | None

    @property
    def total(self) -> int:
        """Bytes of one actor on each of its GPUs, at its peak."""
        return self.memory.peak.total if isinstance(self.memory, RankMemory) else self.memory.total

    @property
    def terms(self) -> EngineMemory | RankTerms:
        return self.memory.peak if isinstance(self.memory, RankMemory) else self.memory

    @property
    def actors(self) -> str:
        """`trainer rank 0-3`."""
        return f"{self.name} 0-{self.count - 1}" if self.count > 1 else f"{self.name} 0"


@dataclass(frozen=True)
class Plan:
    """All of it. `problems` are sentences, the first one the gravest; `notes` are worth knowing."""

    roles: tuple[Role, ...]
    seats: tuple[Seat, ...]
    host_total: int
    time: StepTime
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def on_gpus(self) -> bool:
        return bool(self.seats)

    @property
    def nodes(self) -> int:
        return 1 + max((seat.node for seat in self.seats), default=0)


def gb(size: int) -> str:
    return f"{size / GB:.1f} GB"


def make_plan(config: Config, machine: Machine, rates: Mapping[str, float]) -> Plan:
    """`rates` are tokens a second of one GPU (or actor) by role, where they are known. Raises `ConfigError`
    and `ModelError`."""
    judges = {name: model_shape(engine.model) for name, engine in config.judge_engines.items()}
    policy = model_shape(config.policy.model)
    check_trainer(config)
    check_engine("rollout.engine", config.rollout.engine, policy, machine.gpus_per_node)
    for name, engine in config.judge_engines.items():
        check_engine(f"models.{name}", engine, judges[name], machine.gpus_per_node)
    roles = _roles(config, machine, policy, judges)
    actors = [(f"{r.name} {i}", r.num_gpus) for r in roles if r.num_gpus > 0 for i in range(r.count)]
    seats = seat(actors, machine.gpus_per_node)
    check_nodes(config, seats, machine.gpus_per_node)
    host = _host_total(config, roles)
    problems = _problems(config, machine, roles)
    if machine.host_bytes is not None and host > machine.host_bytes:
        problems.append(
            f"The run takes {gb(host)} of host memory and there are {gb(machine.host_bytes)}: "
            f"{_host_advice(roles)}, or give --host-memory."
        )
    time = step_time(config, policy, judges, rates)
    return Plan(roles, seats, host, time, tuple(problems), tuple(_notes(config, roles, seats)))


# ---- memory ---------------------------------------------------------------------------------


def _engine_role(
    name: str, model: str, shape: ModelShape, engine: EngineConfig, machine: Machine, sync: SyncConfig | None
) -> Role:
    memory = engine_memory(shape, engine, machine.gpu_bytes, sync)
    budget = engine_budget(engine, machine.gpu_bytes) if engine.num_gpus > 0 else None
    return Role(name, model, engine.replicas, engine.num_gpus, shape, memory, budget)


def _roles(
    config: Config, machine: Machine, policy: ModelShape, judges: Mapping[str, ModelShape]
) -> tuple[Role, ...]:
    trainer, model = config.trainer, config.policy.model
    ranks = rank_memory(policy, trainer, config.sync, longest(config))
    budget = machine.gpu_bytes if trainer.num_gpus > 0 else None
    return (
        _engine_role("rollout engine", model, policy, config.rollout.engine, machine, config.sync),
        *(
            _engine_role(f"judge engine {name}", engine.model, judges[name], engine, machine, None)
            for name, engine in config.judge_engines.items()
        ),
        Role("trainer rank", model, trainer.num_ranks, trainer.num_gpus, policy, ranks, budget),
    )


def longest(config: Config) -> int:
    """Tokens of the longest sequence that is trained on."""
    return config.prompt.max_tokens + config.rollout.max_completion_tokens


def _engines(config: Config) -> dict[str, tuple[str, EngineConfig]]:
    """Section and settings of each engine, by its role's name."""
    found: dict[str, tuple[str, EngineConfig]] = {"rollout engine": ("rollout.engine", config.rollout.engine)}
    for name, engine in config.judge_engines.items():
        found[f"judge engine {name}"] = (f"models.{name}", engine)
    return found


def _problems(config: Config, machine: Machine, roles: tuple[Role, ...]) -> list[str]:
    """A sentence for each role that does not fit: what, how much, what to change."""
    engines, found = _engines(config), []
    for role in roles:
        if isinstance(role.memory, RankMemory):
            if role.budget is not None and role.total > role.budget:
                advice = trainer_advice(role.shape, config.trainer, config.sync, longest(config), role.budget)
                found.append(
                    f"A trainer rank of {role.model} takes {gb(role.total)} in its {role.memory.peak.phase} "
                    f"and has {gb(role.budget)}: {advice}."
                )
            continue
        key, engine = engines[role.name]
        if engine_fits(role.memory, role.budget if role.budget is not None else role.total):
            continue
        if role.budget is None:
            found.append(
                f"The {role.name} of {role.model} has a KV cache of {gb(role.memory.kv_cache)}, which holds "
                f"no sequence of {engine.max_model_len} tokens: raise {key}.kv_cache_gb."
            )
            continue
        sync = config.sync if key == "rollout.engine" else None
        advice = engine_advice(key, role.shape, engine, machine.gpu_bytes, machine.gpus_per_node, sync)
        if role.memory.sequences < 1:
            what = (
                f"needs {gb(role.memory.without_cache)} before its KV cache, which is left "
                f"{gb(max(0, role.memory.kv_cache))}, too little for one sequence of "
                f"{engine.max_model_len} tokens"
            )
        else:
            what = f"takes {gb(role.total)}"
        found.append(f"The {role.name} of {role.model} {what}, and has {gb(role.budget)}: {advice}.")
    return found


def _host_total(config: Config, roles: tuple[Role, ...]) -> int:
    """Host memory of the run: its actors where they have no GPU, what ranks keep there beside one, a process
    for each engine on a GPU, the object store, the driver."""
    total = int(config.ray.object_store_gb * GB) + PROCESS_BYTES
    for role in roles:
        if role.budget is None:
            total += role.count * role.total
        elif isinstance(role.memory, RankMemory):
            total += role.count * role.memory.host
        else:
            total += role.count * PROCESS_BYTES
    return total


def _host_advice(roles: tuple[Role, ...]) -> str:
    largest = max(roles, key=lambda role: role.count * role.total)
    return {
        "rollout engine": "lower rollout.engine.replicas or rollout.engine.kv_cache_gb",
        "trainer rank": "lower trainer.micro_batch_tokens or set trainer.lora.rank=16",
    }.get(largest.name, "let judge pools share one engine")


def _notes(config: Config, roles: tuple[Role, ...], seats: tuple[Seat, ...]) -> list[str]:
    engines, notes = _engines(config), []
    shared = {(s.node, gpu) for s in seats for gpu in s.gpus if s.share < 1}
    for role in roles:
        if role.name not in engines or not isinstance(role.memory, EngineMemory):
            continue
        key, engine = engines[role.name]
        if 1 <= role.memory.sequences < engine.max_num_seqs:
            notes.append(
                f"The cache of each {role.name} holds {role.memory.sequences} sequences of full length, "
                f"fewer than {key}.max_num_seqs={engine.max_num_seqs}: when all are that long, others wait."
            )
        if shared and 0 < engine.num_gpus < 1 and engine.kv_cache_gb is None:
            notes.append(
                f"{key} shares a GPU: set its kv_cache_gb, since what vLLM measures at its start may be "
                "disturbed by its neighbour's."
            )
    if config.trainer.num_gpus > 0:
        rank = roles[-1].memory
        assert isinstance(rank, RankMemory)
        notes.append(f"Each trainer rank also takes up to {gb(rank.host)} of host memory.")
        used = roles[-1].total / (roles[-1].budget or 1)
        if _TIGHT < used <= 1:
            notes.append(
                f"A trainer rank takes {used:.0%} of its GPU: what the allocator leaves unused between "
                "tensors is not counted, and may be more than the rest."
            )
    return notes


# ---- as lines, for a configuration's comments -----------------------------------------------

_ENGINE_TERMS = ("weights", "activations", "graphs", "overhead", "sync_buffers", "kv_cache")
_RANK_TERMS = ("weights", "optimizer", "gradients", "reference", "activations", "buffers", "overhead")


def term_sizes(terms: EngineMemory | RankTerms) -> dict[str, int]:
    """The terms of a total, in bytes, by name."""
    names = _RANK_TERMS if isinstance(terms, RankTerms) else _ENGINE_TERMS
    return {name.replace("_", " "): getattr(terms, name) for name in names}


def plan_lines(plan: Plan) -> list[str]:
    """The plan's figures, two or three lines a role."""
    lines = []
    for role in plan.roles:
        of = f" of {role.budget / GB:g} GB" if role.budget is not None else ""
        when = f" in its {role.terms.phase}" if isinstance(role.terms, RankTerms) else ""
        lines.append(f"{role.actors}: {gb(role.total)}{of}{when}")
        lines += _listed(term_sizes(role.terms))
        if isinstance(role.memory, RankMemory):
            lines += _listed({terms.phase: terms.total for terms in role.memory.phases})
        else:
            per_token, sequences = role.memory.kv_bytes_per_token, role.memory.sequences
            lines.append(f"  {per_token:,} bytes a token; {sequences} sequences of full length")
    lines += [f"{where}: {', '.join(who)}" for where, who in gpu_rows(plan)]
    return [*lines, f"step: {plan.time.seconds:.0f} s by assumed rates"]


def _listed(sizes: Mapping[str, int]) -> list[str]:
    text = ", ".join(f"{name} {size / GB:.1f}" for name, size in sizes.items() if size)
    return textwrap.wrap(text, 96, initial_indent="  ", subsequent_indent="  ")


def gpu_rows(plan: Plan) -> list[tuple[str, list[str]]]:
    """(node and GPU, who sits there), in order."""
    rows: dict[tuple[int, int], list[str]] = {}
    for taken in plan.seats:
        for gpu in taken.gpus:
            rows.setdefault((taken.node, gpu), []).append(taken.actor)
    return [(f"node {node} GPU {gpu}", who) for (node, gpu), who in sorted(rows.items())]
