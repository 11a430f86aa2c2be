"""Functions of a test, run inside the processes of a trainer group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from perm_ray.trainer.group import TrainerGroup

TIMEOUT_S = 60.0


def in_ranks(group: TrainerGroup, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Run `function(the rank's actor, *args)` in every rank; results in order of rank."""
    return ray.get([rank.__ray_call__.remote(function, *args) for rank in group.ranks], timeout=TIMEOUT_S)
