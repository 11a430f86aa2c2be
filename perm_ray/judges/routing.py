"""Which replica of a pool judges a group. Pure.

A group goes to one replica, whose engine then holds the group's prefix (rubric and scenario) in its
cache. It moves on when that replica has much more to do than the idlest: computing a prefix again is
cheaper than a long queue.
"""

from __future__ import annotations


class Router:
    """Keeps, for one pool, each replica's number of tasks under way and each group's home."""

    def __init__(self, num_replicas: int, max_queue: int) -> None:
        self._max_queue = max_queue
        self._under_way = [0] * num_replicas
        self._home: dict[str, int] = {}

    def route(self, group: str) -> int:
        """The replica for a further task of `group`, which is counted as under way from now on."""
        idlest = self._under_way.index(min(self._under_way))
        home = self._home.setdefault(group, idlest)
        if self._under_way[home] - self._under_way[idlest] > self._max_queue:
            home = self._home[group] = idlest
        self._under_way[home] += 1
        return home

    def done(self, replica: int, num_tasks: int) -> None:
        """So many of a replica's tasks are no longer under way."""
        self._under_way[replica] -= num_tasks

    def forget_groups(self) -> None:
        """Begin a step: the same groups in the same order are then routed alike, resumed or not."""
        self._home.clear()
