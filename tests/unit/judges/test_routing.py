"""Which replica judges a group."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from perm_ray.judges.routing import Router


def test_groups_are_spread_and_each_stays_at_its_replica() -> None:
    router = Router(num_replicas=2, max_queue=64)
    homes: dict[str, int] = {}
    routes = {group: {router.route(group, homes) for _ in range(4)} for group in "abcd"}
    assert all(len(replicas) == 1 for replicas in routes.values())
    assert Counter(min(replicas) for replicas in routes.values()) == {0: 2, 1: 2}


def test_a_group_leaves_a_replica_with_a_long_queue_and_stays_where_it_went() -> None:
    router = Router(num_replicas=2, max_queue=3)
    homes: dict[str, int] = {}
    assert [router.route("a", homes) for _ in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_finished_work_counts_no_more() -> None:
    router = Router(num_replicas=2, max_queue=3)
    homes: dict[str, int] = {}
    assert [router.route("a", homes) for _ in range(4)] == [0] * 4
    router.done(0, 4)
    assert [router.route("a", homes) for _ in range(4)] == [0] * 4


def test_a_new_batch_routes_the_same_groups_alike() -> None:
    router = Router(num_replicas=3, max_queue=64)

    def step() -> list[int]:
        homes: dict[str, int] = {}
        routes = [router.route(group, homes) for group in "abcabc"]
        for replica in routes:
            router.done(replica, 1)
        return routes

    assert step() == step() == [0, 1, 2, 0, 1, 2]


@given(st.integers(1, 4), st.integers(1, 8), st.lists(st.sampled_from("abcde"), max_size=60))
def test_no_queue_is_ever_much_longer_than_the_shortest(
    num_replicas: int, max_queue: int, groups: list[str]
) -> None:
    router = Router(num_replicas, max_queue)
    homes: dict[str, int] = {}
    counts = Counter(dict.fromkeys(range(num_replicas), 0))
    for group in groups:
        counts[router.route(group, homes)] += 1
        assert max(counts.values()) - min(counts.values()) <= max_queue + 1
