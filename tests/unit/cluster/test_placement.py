"""What a run takes, in placement groups; and what is said of what is missing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from perm_ray.cluster.placement import (
    Demand,
    Places,
    check_gpus,
    demands,
    groups,
    missing_in_sum,
    missing_resources,
    total,
)
from perm_ray.cluster.session import check_socket_path
from perm_ray.config.load import load_config
from perm_ray.config.schema import RayConfig
from perm_ray.errors import ConfigError
from perm_ray.runs.run_plan import plan_run

ROLLOUT = Demand("rollout engine", 3, 1.0, 2.0, resources={"rollout": 1.0})
JUDGE = Demand("judge engine shared", 1, 2.0, 0.5)
ASKS = Demand("judge resonation", 1, 0.0, 0.0)
TRAINER = Demand("trainer rank", 2, 4.0, 1.0, together=True)
ROWS = (ROLLOUT, JUDGE, ASKS, TRAINER)


def test_a_pool_is_spread_and_the_trainer_is_kept_together() -> None:
    separate = groups(RayConfig(), ROWS)
    assert [(group.strategy, len(group.bundles)) for group in separate] == [
        ("SPREAD", 3),
        ("SPREAD", 1),
        ("PACK", 2),
    ]
    # One bundle, and so one node, for all GPUs that an engine spans.
    assert separate[0].bundles[0] == {"CPU": 1.0, "GPU": 2.0, "rollout": 1.0}


def test_colocated_replicas_share_a_node() -> None:
    (together,) = groups(RayConfig(layout="colocated"), ROWS)
    assert together.bundles == [
        {"CPU": 7.0, "GPU": 3.5, "rollout": 1.0},
        {"CPU": 5.0, "GPU": 3.0, "rollout": 1.0},
        {"CPU": 1.0, "GPU": 2.0, "rollout": 1.0},
    ]
    assert groups(RayConfig(layout="colocated"), [ASKS]) == []


@pytest.mark.parametrize("layout", ["separate", "colocated"])
def test_every_layout_reserves_all_that_is_taken(layout: Any) -> None:
    reserved = groups(RayConfig(layout=layout), ROWS)
    bundles = [bundle for group in reserved for bundle in group.bundles]
    for name, amount in total(ROWS).items():
        assert sum(bundle.get(name, 0.0) for bundle in bundles) == amount


def test_what_is_not_reserved_is_placed_by_ray() -> None:
    assert Places({"a": ["here"]}).of("a", 1) == ["here"]
    assert Places().of("a", 2) == ["DEFAULT", "DEFAULT"]


def test_what_is_missing_is_named_with_what_was_found() -> None:
    assert missing_in_sum(ROWS, {"CPU": 13.0, "GPU": 8.5, "rollout": 3.0}) == ""
    assert (
        missing_in_sum(ROWS, {"CPU": 13.0, "GPU": 4.0}) == "8.5 GPUs (4 found) and 3 of 'rollout' (0 found)"
    )


def test_an_actor_needs_a_node_to_itself() -> None:
    nodes = [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}]
    assert missing_resources([Demand("rollout engine", 1, 1.0, 1.0)], nodes) == ""
    assert missing_resources([Demand("rollout engine", 1, 1.0, 2.0)], nodes) == (
        "a node with 1 CPUs, 2 GPUs for each rollout engine"
    )
    assert (
        missing_resources([Demand("rollout engine", 3, 1.0, 1.0)], nodes)
        == "3 CPUs (2 found) and 3 GPUs (2 found)"
    )


def test_resources_of_the_configuration_are_asked_for() -> None:
    config = load_config(None, ["rollout.engine.resources={rollout: 0.5}", "trainer.resources={trainer: 1}"])
    sums = total(demands(config))
    assert sums["rollout"] == 0.5
    assert sums["trainer"] == 1.0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rollout.engine.resources={GPU: 1}", "num_gpus"),
        ("rollout.engine.resources={rollout: 0}", "greater than 0"),
        ("ray.layout=stacked", "one of separate, colocated"),
    ],
)
def test_a_wrong_resource_is_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(None, [override])


def test_a_gpu_is_shared_on_purpose_only() -> None:
    base = load_config(None, ["rollout.engine.num_gpus=1", "trainer.num_gpus=1"])
    names = tuple(base.judges.pools)
    halves = dict.fromkeys(names, dataclasses.replace(base.judge_engines["judge"], num_gpus=0.5))
    pools = {name: dataclasses.replace(base.judges.pools[name], model=name) for name in names}
    judges = dataclasses.replace(base.judges, pools=pools)
    with pytest.raises(ConfigError, match=r"ray\.share_gpus"):
        dataclasses.replace(base, models=halves, judges=judges)
    on_purpose = dataclasses.replace(base, models=halves, judges=judges, ray=RayConfig(share_gpus=True))
    assert total(demands(on_purpose))["GPU"] == 4.0


def test_one_gpu_is_enough_for_a_run_whose_weights_go_by_gloo() -> None:
    shared = ["rollout.engine.num_gpus=0.3", "rollout.engine.gpu_memory_utilization=0.3"]
    shared += ["models.judge.num_gpus=0.3", "models.judge.gpu_memory_utilization=0.3"]
    with pytest.raises(ConfigError, match=r"ray\.share_gpus"):
        load_config(None, [*shared, "trainer.num_gpus=0.4"])
    shared.append("ray.share_gpus=true")
    config = load_config(None, [*shared, "trainer.num_gpus=0.4"])
    check_gpus(config)
    assert config.transfer_backend == "gloo"
    assert total(demands(config))["GPU"] == pytest.approx(1.0)
    for wrong, said in (
        ("trainer.num_ranks=2", "NCCL takes one process"),
        ("sync.backend=nccl", "sync.backend"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(None, [*shared, "trainer.num_gpus=0.4", wrong])
    assert load_config(None, [*shared, "trainer.num_gpus=1"]).transfer_backend == "nccl"
    assert load_config(None, [*shared, "trainer.num_gpus=1", "sync.backend=gloo"]).transfer_backend == "gloo"
    assert load_config("local").transfer_backend == "gloo"
    assert load_config("one-gpu").transfer_backend == "gloo"


def test_train_refuses_the_gpus_that_plan_refuses() -> None:
    for overrides, said in (
        (["rollout.engine.num_gpus=2", "trainer.num_gpus=1"], r"rollout\.engine\.num_gpus must be"),
        (["rollout.engine.num_gpus=1", "trainer.num_gpus=2"], r"trainer\.num_gpus must be 1"),
        (["models.judge.num_gpus=4"], r"models\.judge\.num_gpus must be"),
    ):
        with pytest.raises(ConfigError, match=said):
            plan_run(load_config("local", overrides))


def test_a_temporary_folder_that_rays_sockets_do_not_fit_under_is_refused() -> None:
    check_socket_path("/tmp")
    with pytest.raises(ConfigError, match="TMPDIR must be a path of at most 39 bytes"):
        check_socket_path("/home/somebody/a/rather/long/path/for/temporary/files")
