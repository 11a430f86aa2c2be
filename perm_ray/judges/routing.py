"""Choose the replica of a pool that judges a group. Pure.

A group goes to one replica, whose engine then holds the group's prefix (rubric and scenario) in its cache.
It moves on when that replica has much more to do than the idlest: computing a prefix again is cheaper than
a long queue.
"""

from __future__ import annotations


class Router:
    """The number of tasks that each replica of a pool has under way."""

    def __init__(self, num_replicas: int, max_queue: int) -> None:
        self._max_queue = max_queue
        self._under_way = [0] * num_replicas

    def route(self, group: str, homes: dict[str, int]) -> int:
        """Return the replica for a further task of `group`, which is counted as under way from now on.

        `homes` has the replica of each group so far, of one batch: the same groups in the same order are
        then routed alike, resumed or not.
        """
        idlest = self._under_way.index(min(self._under_way))
        home = homes.setdefault(group, idlest)
        if self._under_way[home] - self._under_way[idlest] > self._max_queue:
            home = homes[group] = idlest
        self._under_way[home] += 1
        return home

    def done(self, replica: int, num_tasks: int) -> None:
        """Count so many of a replica's tasks as no longer under way."""
        self._under_way[replica] -= num_tasks
