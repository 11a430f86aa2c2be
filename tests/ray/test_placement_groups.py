"""Places are reserved before anything starts; what is missing is said, and waited for with a bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup

from perm_ray.cluster.placement import Demand, reserve
from perm_ray.config.schema import RayConfig
from perm_ray.errors import RunError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]


@pytest.fixture
def tidy(ray_cluster: int) -> Iterator[int]:
    """The cluster's CPU slots; what a test reserves is given back."""
    yield ray_cluster
    for name, group in ray.util.placement_group_table().items():
        if group["state"] != "REMOVED":
            ray.util.remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(name))))


@pytest.mark.usefixtures("tidy")
def test_actors_go_where_their_place_is() -> None:
    def own_place() -> str | None:  # inside, since a worker cannot import this module
        group = ray.util.get_current_placement_group()
        return None if group is None else group.id.hex()

    said: list[str] = []
    rows = [
        Demand("engine", 2, 1.0, 0.0),
        Demand("rank", 1, 2.0, 0.0, together=True),
        Demand("asks", 1, 0.0, 0.0),
    ]
    places = reserve(RayConfig(address="auto"), rows, said.append)
    as_task: Any = ray.remote(own_place)
    inside = as_task.options(num_cpus=2, scheduling_strategy=places.of("rank", 1)[0]).remote()
    outside = as_task.options(num_cpus=1).remote()
    reserved = ray.util.placement_group_table()
    held = {name for name, group in reserved.items() if group["bundles"] == {0: {"CPU": 2.0}}}
    assert ray.get(inside, timeout=60) in held
    assert ray.get(outside, timeout=60) is None
    assert [line.split(":")[0] for line in said] == ["engine", "rank"]
    assert said[0].count("127.0.0.1") == 2
    assert list(places.by_role) == ["engine", "rank"]


def test_a_private_cluster_says_at_once_what_it_lacks(tidy: int) -> None:
    with pytest.raises(RunError, match=rf"100 CPUs \({tidy} found\)"):
        reserve(RayConfig(), [Demand("engine", 100, 1.0, 0.0)], print)


@pytest.mark.usefixtures("tidy")
def test_a_joined_cluster_is_waited_for_with_a_bound() -> None:
    said: list[str] = []
    config = RayConfig(address="auto", startup_timeout_s=3.0)
    with pytest.raises(RunError, match=r"1 of 'rollout' \(0 found\), waited 3 s"):
        reserve(config, [Demand("engine", 1, 1.0, 0.0, resources={"rollout": 1.0})], said.append)
    longer = RayConfig(address="auto", startup_timeout_s=11.0)
    with pytest.raises(RunError, match="waited 11 s"):
        reserve(longer, [Demand("engine", 1, 1.0, 0.0, resources={"rollout": 1.0})], said.append)
    assert said == ["waiting for resources: 1 of 'rollout' (0 found)"]
