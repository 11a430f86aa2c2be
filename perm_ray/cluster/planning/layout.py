"""Which GPUs each actor takes, and whether it can take them at all. Used by `plan.py`; pure.

Ray decides where an actor goes; that it can place them all, and on how many nodes, follows from the sizes.
The order here, largest first, each into the first GPUs that are free, is one that Ray may choose as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perm_ray.cluster.placement import check_engine_gpus
from perm_ray.cluster.planning.shapes import ModelShape
from perm_ray.config.engines import EngineConfig
from perm_ray.config.schema import Config
from perm_ray.errors import ConfigError

_ROUNDING = 1e-6  # Ray counts in ten-thousandths of a GPU


@dataclass(frozen=True)
class Seat:
    """One actor and the GPUs of one node that it takes, by index; `share` of each (1: alone on it)."""

    actor: str
    node: int
    gpus: tuple[int, ...]
    share: float


def seat(actors: Sequence[tuple[str, float]], gpus_per_node: int) -> tuple[Seat, ...]:
    """Seats for (name, num_gpus) pairs, in their order; as many nodes as it takes."""
    order = sorted(range(len(actors)), key=lambda index: (-actors[index][1], index))
    nodes: list[list[float]] = []  # what is free of each GPU
    seats: dict[int, Seat] = {}
    for index in order:
        name, wanted = actors[index]
        count, share = (round(wanted), 1.0) if wanted >= 1 else (1, wanted)
        found = _first_fit(nodes, count, share)
        if found is None:
            nodes.append([1.0] * gpus_per_node)
            found = len(nodes) - 1, tuple(range(count))
        node, gpus = found
        for gpu in gpus:
            nodes[node][gpu] -= share
        seats[index] = Seat(name, node, gpus, share)
    return tuple(seats[index] for index in range(len(actors)))


def _first_fit(
    nodes: Sequence[Sequence[float]], count: int, share: float
) -> tuple[int, tuple[int, ...]] | None:
    for node, free in enumerate(nodes):
        fits = [gpu for gpu, left in enumerate(free) if left >= share - _ROUNDING]
        if len(fits) >= count:
            return node, tuple(fits[:count])
    return None


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
    """The largest size under `below` that fits the model."""
    sizes = (shape.heads, shape.intermediate, shape.kv_heads)
    return next(size for size in range(below - 1, 0, -1) if all(n % size == 0 for n in sizes))


def check_nodes(config: Config, seats: Sequence[Seat], gpus_per_node: int) -> None:
    """A private cluster has one machine's GPUs."""
    nodes = 1 + max((seat.node for seat in seats), default=0)
    if nodes > 1 and config.ray.address is None:
        raise ConfigError(
            f"The run's actors take {nodes} nodes of {gpus_per_node} GPUs, and ray.address: null is one "
            "machine: set ray.address to a cluster's, lower replicas and trainer.num_ranks, or give "
            "--gpus-per-node."
        )
