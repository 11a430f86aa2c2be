"""Plan a configuration: hold each role's memory against what it has, before there is a machine.

`make_plan` puts `memory.py` and `shapes.py` together over a whole `Config`; `perm_ray/cli/plan.py` prints it.
What can never be placed raises `ConfigError` at once; what is too large is in the plan, as `problems`, so
that the figures can be shown with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from perm_ray.cluster.placement import check_engine_gpus, check_trainer, demands, total
from perm_ray.cluster.planning.memory import (
    GB,
    EngineMemory,
    RankMemory,
    RankTerms,
    engine_memory,
    rank_memory,
)
from perm_ray.cluster.planning.shapes import ModelShape, model_shape
from perm_ray.config.engines import EngineConfig
from perm_ray.config.schema import Config
from perm_ray.config.training import SyncConfig
from perm_ray.errors import ConfigError

_TIGHT = 0.95  # of a trainer rank's GPU; engines take what they take at their start


@dataclass(frozen=True)
class Machine:
    """The GPUs to plan for."""

    gpu_bytes: int = 80 * GB
    gpus_per_node: int = 8


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
        """Return the bytes of one actor on each of its GPUs, at its peak."""
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
    """The roles' memory. `problems` say what does not fit, worst first; `notes` are worth knowing."""

    roles: tuple[Role, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def on_gpus(self) -> bool:
        return any(role.num_gpus > 0 for role in self.roles)


def gb(size: int) -> str:
    return f"{size / GB:.1f} GB"


def make_plan(config: Config, machine: Machine) -> Plan:
    """Compute the plan of a configuration.

    Raises:
        ConfigError: An actor can never be placed.
        ModelError: A model's shape is not known.
    """
    judges = {name: model_shape(engine.model) for name, engine in config.judge_engines.items()}
    policy = model_shape(config.policy.model)
    check_trainer(config)
    check_engine("rollout.engine", config.rollout.engine, policy, machine.gpus_per_node)
    for name, engine in config.judge_engines.items():
        check_engine(f"models.{name}", engine, judges[name], machine.gpus_per_node)
    _check_machine(config, machine.gpus_per_node)
    roles = _roles(config, machine, policy, judges)
    return Plan(roles, tuple(_problems(config, roles)), tuple(_notes(config, roles)))


# ---- what can be placed at all ----------------------------------------------------------------


def check_engine(key: str, engine: EngineConfig, shape: ModelShape, gpus_per_node: int) -> None:
    """Refuse an engine that no GPUs can hold, however large. `key` is its section. Raises `ConfigError`."""
    parallel, gpus = engine.tensor_parallel_size, engine.num_gpus
    if gpus == 0:
        return
    check_engine_gpus(key, engine)
    if gpus > gpus_per_node:
        raise ConfigError(
            f"{key}.num_gpus must be at most the {gpus_per_node} GPUs of a node, found {gpus:g}: an engine "
            "cannot span nodes; lower it, or give --gpus-per-node."
        )
    for what, size in (("heads", shape.heads), ("the MLP's width", shape.intermediate)):
        if size % parallel:
            raise ConfigError(
                f"{key}.tensor_parallel_size must divide {what} of the model, {size}, found {parallel}: set "
                f"it to {_divisor(shape, parallel)}."
            )
    if shape.kv_heads % parallel and parallel % shape.kv_heads:
        raise ConfigError(
            f"{key}.tensor_parallel_size must divide the model's {shape.kv_heads} key-value heads, or be a "
            f"multiple of them, found {parallel}: set it to {_divisor(shape, parallel)}."
        )


def _divisor(shape: ModelShape, below: int) -> int:
    """Return the largest size under `below` that fits the model."""
    sizes = (shape.heads, shape.intermediate, shape.kv_heads)
    return next(size for size in range(below - 1, 0, -1) if all(n % size == 0 for n in sizes))


def _check_machine(config: Config, gpus_per_node: int) -> None:
    """Refuse more GPUs than one machine has, where a private cluster is to hold the run."""
    gpus = total(demands(config)).get("GPU", 0.0)
    if config.ray.address is None and gpus > gpus_per_node:
        raise ConfigError(
            f"The run's actors take {gpus:g} GPUs, and ray.address: null is one machine of {gpus_per_node}: "
            "set ray.address to a cluster's, lower replicas and trainer.num_ranks, or give --gpus-per-node."
        )


# ---- memory ---------------------------------------------------------------------------------


def _engine_role(
    name: str, model: str, shape: ModelShape, engine: EngineConfig, machine: Machine, sync: SyncConfig | None
) -> Role:
    memory = engine_memory(shape, engine, machine.gpu_bytes, sync)
    budget = int(min(1.0, engine.num_gpus) * machine.gpu_bytes) if engine.num_gpus > 0 else None
    return Role(name, model, engine.replicas, engine.num_gpus, shape, memory, budget)


def _roles(
    config: Config, machine: Machine, policy: ModelShape, judges: Mapping[str, ModelShape]
) -> tuple[Role, ...]:
    trainer, model = config.trainer, config.policy.model
    sync = replace(config.sync, backend=config.transfer_backend)
    ranks = rank_memory(policy, trainer, sync, longest(config))
    budget = int(trainer.num_gpus * machine.gpu_bytes) if trainer.num_gpus > 0 else None
    return (
        _engine_role("rollout engine", model, policy, config.rollout.engine, machine, sync),
        *(
            _engine_role(f"judge engine {name}", engine.model, judges[name], engine, machine, None)
            for name, engine in config.judge_engines.items()
        ),
        Role("trainer rank", model, trainer.num_ranks, trainer.num_gpus, policy, ranks, budget),
    )


def longest(config: Config) -> int:
    """Return the tokens of the longest sequence that is trained on."""
    return config.prompt.max_tokens + config.rollout.max_completion_tokens


def _engines(config: Config) -> dict[str, tuple[str, EngineConfig]]:
    """Section and settings of each engine, by its role's name."""
    found: dict[str, tuple[str, EngineConfig]] = {"rollout engine": ("rollout.engine", config.rollout.engine)}
    for name, engine in config.judge_engines.items():
        found[f"judge engine {name}"] = (f"models.{name}", engine)
    return found


def _problems(config: Config, roles: tuple[Role, ...]) -> list[str]:
    """Return a sentence for each role that does not fit: what, how much, which keys change it."""
    engines, found = _engines(config), []
    for role in roles:
        if isinstance(role.memory, RankMemory):
            if role.budget is not None and role.total > role.budget:
                found.append(
                    f"A trainer rank of {role.model} takes {gb(role.total)} in its {role.memory.peak.phase} "
                    f"and has {gb(role.budget)}: shard more (trainer.zero_stage=3, trainer.num_ranks), lower "
                    "trainer.micro_batch_tokens, or train an adapter (trainer.lora.rank)."
                )
            continue
        key, engine = engines[role.name]
        if role.memory.sequences >= 1 and (role.budget is None or role.total <= role.budget):
            continue
        if role.budget is None:
            found.append(
                f"The {role.name} of {role.model} has a KV cache of {gb(role.memory.kv_cache)}, which holds "
                f"no sequence of {engine.max_model_len} tokens: raise {key}.kv_cache_gb."
            )
            continue
        what = f"takes {gb(role.total)}"
        if role.memory.sequences < 1:
            what = (
                f"needs {gb(role.memory.without_cache)} before its KV cache, which is left "
                f"{gb(max(0, role.memory.kv_cache))}, too little for one sequence of "
                f"{engine.max_model_len} tokens"
            )
        found.append(
            f"The {role.name} of {role.model} {what}, and has {gb(role.budget)}: change {key}.kv_cache_gb or "
            f"{key}.gpu_memory_utilization, lower {key}.max_num_seqs, or give it more GPUs "
            f"({key}.tensor_parallel_size and {key}.num_gpus)."
        )
    return found


def _notes(config: Config, roles: tuple[Role, ...]) -> list[str]:
    engines, notes = _engines(config), []
    for role in roles:
        if role.name not in engines or not isinstance(role.memory, EngineMemory):
            continue
        key, engine = engines[role.name]
        if 1 <= role.memory.sequences < engine.max_num_seqs:
            notes.append(
                f"The cache of each {role.name} holds {role.memory.sequences} sequences of full length, "
                f"fewer than {key}.max_num_seqs={engine.max_num_seqs}: when all are that long, others wait."
            )
        if 0 < engine.num_gpus < 1 and engine.kv_cache_gb is None:
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


_ENGINE_TERMS = ("weights", "activations", "graphs", "overhead", "sync_buffers", "kv_cache")
_RANK_TERMS = ("weights", "optimizer", "gradients", "reference", "activations", "buffers", "overhead")


def term_sizes(terms: EngineMemory | RankTerms) -> dict[str, int]:
    """Return the terms of a total, in bytes, by name."""
    names = _RANK_TERMS if isinstance(terms, RankTerms) else _ENGINE_TERMS
    return {name.replace("_", " "): getattr(terms, name) for name in names}
