"""Count the resources that a run takes, and reserve them as placement groups.

`demands` is plain arithmetic over the configuration (what `--dry-run` prints). `reserve` asks Ray for a
place for every actor before any starts, waits with a bound, and says meanwhile what is missing. A pool's
replicas are spread over nodes and each engine has one node to itself, however many GPUs it spans;
trainer ranks are kept together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from perm_ray.config.engines import EngineConfig
from perm_ray.config.schema import Config, RayConfig
from perm_ray.errors import ConfigError, RunError

ROLLOUT, TRAINER = "rollout engine", "trainer rank"
SAY_EVERY_S = 10.0  # while resources are waited for


@dataclass(frozen=True, slots=True)
class Demand:
    """`count` actors of one role, each with so many CPUs, GPUs and custom resources.

    `together` says how Ray is to place them: ranks pack, replicas spread.
    """

    role: str
    count: int
    num_cpus: float
    num_gpus: float
    model: str = ""
    resources: Mapping[str, float] = field(default_factory=dict)
    together: bool = False

    @property
    def each(self) -> dict[str, float]:
        """Return what one actor takes, by Ray's names; nothing for an actor that only waits for others."""
        found = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: amount for name, amount in found.items() if amount > 0}


def judge_role(engine: str) -> str:
    """Return the role of a judge engine, by its name in `models`."""
    return f"judge engine {engine}"


def demands(config: Config, own_judge: bool = False) -> tuple[Demand, ...]:
    """Return what each pool of the run takes; a judge object of the user's takes nothing."""
    return (
        rollout_demand(config),
        *(() if own_judge else judge_demands(config)),
        trainer_demand(config),
    )


def rollout_demand(config: Config) -> Demand:
    """Return what the rollout engines take."""
    engine, model = config.rollout.engine, config.policy.model
    return Demand(ROLLOUT, engine.replicas, engine.num_cpus, engine.num_gpus, model, engine.resources)


def trainer_demand(config: Config) -> Demand:
    """Return what the trainer's ranks take."""
    trainer, model = config.trainer, config.policy.model
    return Demand(
        TRAINER, trainer.num_ranks, trainer.num_cpus, trainer.num_gpus, model, trainer.resources, True
    )


def judge_demands(config: Config) -> tuple[Demand, ...]:
    """Return what the judges take."""
    engines = [
        Demand(judge_role(name), e.replicas, e.num_cpus, e.num_gpus, e.model, e.resources)
        for name, e in config.judge_engines.items()
    ]
    engines += [
        Demand(f"judge endpoint {name}", 1, 0.0, 0.0, e.model) for name, e in config.judge_endpoints.items()
    ]
    pools = [
        Demand(f"judge {name}", config.replicas_of(pool), 0.0, 0.0, f"asks {pool.model}")
        for name, pool in config.judges.pools.items()
    ]
    return (*engines, *pools)


def total(rows: Sequence[Demand]) -> dict[str, float]:
    """Return the sum of all rows, by Ray's names of resources."""
    sums: dict[str, float] = {}
    for row in rows:
        for name, amount in row.each.items():
            sums[name] = sums.get(name, 0.0) + row.count * amount
    return sums


def check_local_resources(config: RayConfig, rows: Sequence[Demand]) -> None:
    """Refuse at once what a private cluster can never hold. Raises `ConfigError`."""
    cpus = total(rows).get("CPU", 0.0)
    offered = config.num_cpus
    if config.address is None and offered is not None and offered < cpus:
        raise ConfigError(
            f"ray.num_cpus must be at least {math.ceil(cpus)}, what the run's actors take together, "
            f"found {offered}: raise it or leave it null."
        )


def check_gpus(config: Config) -> None:
    """Refuse GPU counts with which no engine or trainer rank starts; `plan` and `train` both ask here.

    Raises:
        ConfigError: It names the key, and what to set it to.
    """
    check_trainer(config)
    check_engine_gpus("rollout.engine", config.rollout.engine)
    for name, engine in config.judge_engines.items():
        check_engine_gpus(f"models.{name}", engine)


def check_engine_gpus(key: str, engine: EngineConfig) -> None:
    """Refuse an engine whose GPUs do not fit its tensor parallelism or its share of memory."""
    parallel, gpus = engine.tensor_parallel_size, engine.num_gpus
    if gpus == 0:
        return
    if engine.gpu_memory_utilization > min(1.0, gpus):
        raise ConfigError(
            f"{key}.gpu_memory_utilization must be at most {min(1.0, gpus):g}, the share of a GPU that "
            f"{key}.num_gpus gives (vLLM does not start unless so much is free, cache or not), found "
            f"{engine.gpu_memory_utilization:g}: set it to {0.9 * min(1.0, gpus):g}."
        )
    if gpus < 1:
        if parallel != 1:
            raise ConfigError(
                f"{key}.tensor_parallel_size must be 1 on a share of a GPU, found {parallel}: set "
                f"{key}.num_gpus={parallel}."
            )
    elif gpus != parallel:
        raise ConfigError(
            f"{key}.num_gpus must be {key}.tensor_parallel_size, the GPUs that the engine spans, found "
            f"{gpus:g} and {parallel}: set both to one number."
        )


def check_trainer(config: Config) -> None:
    """Refuse ranks that drive several GPUs; a single rank may share one."""
    gpus = config.trainer.num_gpus
    if gpus > 1:
        raise ConfigError(
            f"trainer.num_gpus must be 1 (a rank drives one GPU), found {gpus:g}: set it to 1 and choose how "
            "many GPUs train with trainer.num_ranks."
        )


# ---- placement groups -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Places:
    """A place for every actor: a Ray scheduling strategy for each replica or rank of a role."""

    by_role: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def of(self, role: str, count: int) -> Sequence[Any]:
        """Return the places of a role's `count` actors; Ray's own choice where nothing was reserved."""
        return self.by_role.get(role, ["DEFAULT"] * count)


@dataclass(frozen=True, slots=True)
class _Group:
    """A placement group to be: bundle i holds actor i of every row."""

    rows: Sequence[Demand]
    strategy: str

    @property
    def bundles(self) -> list[dict[str, float]]:
        return [
            total([replace(row, count=1) for row in self.rows if i < row.count])
            for i in range(max(row.count for row in self.rows))
        ]


def groups(config: RayConfig, rows: Sequence[Demand]) -> list[_Group]:
    """Return one placement group a pool (`layout: separate`); or one for all, whose bundle i has replica i of
    every pool, so that what takes turns shares a node (`colocated`)."""
    placed = [row for row in rows if row.each]
    if config.layout == "colocated" and placed:
        return [_Group(placed, "PACK")]
    return [_Group([row], "PACK" if row.together else "SPREAD") for row in placed]


def reserve(config: RayConfig, rows: Sequence[Demand], say: Callable[[str], None]) -> Places:
    """Reserve a place for every actor of `rows` in the cluster this process has joined.

    Waits `ray.startup_timeout_s` at most, and says every 10 s what is missing; raises `RunError` with the
    same words in the end. A private cluster has what it has: there the answer comes at once.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    lacking = missing_in_sum(rows, ray.cluster_resources()) if config.address is None else ""
    if lacking:
        more = "share a GPU as configs/one-gpu.yaml does" if " GPUs" in lacking else "raise ray.num_cpus"
        raise RunError(f"The run needs {lacking}: {more}, or lower replicas.")
    wanted = groups(config, rows)
    reserved = [placement_group(group.bundles, strategy=group.strategy) for group in wanted]
    try:
        _await(config, wanted, [place.ready() for place in reserved], say)
    except RunError:  # others may be waiting for what we had
        for place in reserved:
            remove_placement_group(place)
        raise
    if config.address is not None:
        for line in _where(wanted, reserved):
            say(line)
    return Places(
        {
            row.role: [
                PlacementGroupSchedulingStrategy(place, index, placement_group_capture_child_tasks=False)
                for index in range(row.count)
            ]
            for group, place in zip(wanted, reserved, strict=True)
            for row in group.rows
        }
    )


def _await(
    config: RayConfig, wanted: Sequence[_Group], ready: Sequence[Any], say: Callable[[str], None]
) -> None:
    import ray

    began, waiting = time.monotonic(), list(ready)
    while waiting:
        left_s = config.startup_timeout_s - (time.monotonic() - began)
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=max(0.0, min(SAY_EVERY_S, left_s)))
        if not waiting:
            return
        unplaced = [g.rows for g, call in zip(wanted, ready, strict=True) if call in waiting]
        rows = [row for rows in unplaced for row in rows]
        lacking = missing_in_sum(rows, ray.available_resources()) or "nodes with room for " + ", ".join(
            f"{row.count} x {row.role} ({_amounts(row.each)} each)" for row in rows
        )
        if left_s <= SAY_EVERY_S:
            raise RunError(
                f"The run needs {lacking}, waited {time.monotonic() - began:.0f} s "
                "(ray.startup_timeout_s): add nodes, wait for others to finish, or lower replicas."
            )
        say(f"waiting for resources: {lacking}")


def _where(wanted: Sequence[_Group], reserved: Sequence[Any]) -> list[str]:
    """Return the node of every actor, a line for each role."""
    import ray
    from ray.util.placement_group import placement_group_table

    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    lines = []
    for group, place in zip(wanted, reserved, strict=True):
        nodes = placement_group_table(place)["bundles_to_node_id"]
        lines += [
            f"{row.role}: {', '.join(addresses[nodes[index]] for index in range(row.count))}"
            for row in group.rows
        ]
    return lines


def missing_in_sum(rows: Sequence[Demand], found: Mapping[str, float]) -> str:
    """Return what `rows` together take beyond the cluster's resources, in words; "" when these suffice."""
    return " and ".join(
        f"{_amounts({name: amount})} ({found.get(name, 0.0):g} found)"
        for name, amount in total(rows).items()
        if found.get(name, 0.0) < amount
    )


def missing_resources(rows: Sequence[Demand], nodes: Sequence[Mapping[str, float]]) -> str:
    """Return what `rows` need that these nodes lack, in words: in sum, or for one actor on any node."""
    whole: dict[str, float] = {}
    for node in nodes:
        for name, amount in node.items():
            whole[name] = whole.get(name, 0.0) + amount
    unplaceable = [
        f"a node with {_amounts(row.each)} for each {row.role}"
        for row in rows
        if not any(all(node.get(n, 0.0) >= amount for n, amount in row.each.items()) for node in nodes)
    ]
    return missing_in_sum(rows, whole) or " and ".join(unplaceable)


def _amounts(resources: Mapping[str, float]) -> str:
    units = {name: f"{name}s" if name in ("CPU", "GPU") else f"of {name!r}" for name in resources}
    return ", ".join(f"{amount:g} {units[name]}" for name, amount in resources.items())
