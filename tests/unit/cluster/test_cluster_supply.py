"""What the configurations of configs/clusters ask for, against what the manifests of cluster/ provide: in
all, and each actor on one node. Both are read from the files; nothing is started."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from perm_ray.cluster.placement import demands
from perm_ray.config.load import load_config
from perm_ray.config.schema import Config

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs" / "clusters"
CLUSTER = ROOT / "cluster"


@dataclass
class Node:
    """A node of the cluster, and what is left of it."""

    name: str
    left: dict[str, float]


@dataclass(frozen=True)
class Query:
    """One actor that takes something."""

    role: str
    takes: Mapping[str, float] = field(default_factory=dict)


# ---- supply -----------------------------------------------------------------------------------


def kuberay_nodes() -> list[Node]:
    """A node for each pod: KubeRay gives `ray start` a pod's limits, unless rayStartParams say otherwise."""
    spec = yaml.safe_load((CLUSTER / "kuberay" / "raycluster.yaml").read_text(encoding="utf-8"))["spec"]
    nodes = []
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        parameters = group["rayStartParams"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        # The value is quoted for the shell that KubeRay hands it to.
        custom = json.loads(json.loads(parameters.get("resources", '"{}"')))
        cpus = float(parameters.get("num-cpus", limits["cpu"]))
        left = {"CPU": cpus, "GPU": float(limits.get("nvidia.com/gpu", 0)), **custom}
        nodes += [Node(group.get("groupName", "head"), dict(left)) for _ in range(group.get("replicas", 1))]
    return nodes


def ray_up_nodes() -> list[Node]:
    text = (CLUSTER / "ray_up" / "start_node.sh").read_text(encoding="utf-8")
    rows = re.findall(r"^([\d.]+) (\d+) (\d+) (\{.*\})$", text, re.MULTILINE)
    return [
        Node(address, {"CPU": float(cpus), "GPU": float(gpus), **json.loads(custom)})
        for address, cpus, gpus, custom in rows
    ]


def slurm_nodes() -> list[Node]:
    text = (CLUSTER / "slurm" / "perm_ray.sbatch").read_text(encoding="utf-8")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.MULTILINE))
    roles = re.findall(r"^    '(\{.*\})'$", text, re.MULTILINE)
    assert len(roles) == int(options["nodes"])
    each = {"CPU": float(options["cpus-per-task"]), "GPU": float(options["gpus-per-node"])}
    return [Node(f"node {i}", {**each, **json.loads(role)}) for i, role in enumerate(roles)]


SUPPLY = {"kuberay": kuberay_nodes, "ray_up": ray_up_nodes, "slurm": slurm_nodes}


# ---- demand -----------------------------------------------------------------------------------


def resources_of(config: Config, role: str) -> Mapping[str, float]:
    if role == "rollout engine":
        return config.rollout.engine.resources
    if role == "trainer rank":
        return config.trainer.resources
    name = role.removeprefix("judge engine ")
    return config.judge_engines[name].resources if name != role else {}


def asks(config: Config) -> list[Query]:
    found = []
    for row in demands(config):
        takes = {"CPU": row.num_cpus, "GPU": row.num_gpus, **resources_of(config, row.role)}
        found += [Query(row.role, {name: a for name, a in takes.items() if a > 0}) for _ in range(row.count)]
    return [ask for ask in found if ask.takes]


def place(ask: Query, nodes: list[Node]) -> str | None:
    """Take it from the first node that has it; the node's name, or None."""
    for node in nodes:
        if all(node.left.get(name, 0.0) >= amount for name, amount in ask.takes.items()):
            for name, amount in ask.takes.items():
                node.left[name] -= amount
            return node.name
    return None


# ---- together ---------------------------------------------------------------------------------


def test_every_cluster_has_a_configuration() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == SUPPLY.keys()


@pytest.mark.parametrize("name", SUPPLY)
def test_every_actor_finds_a_place(name: str) -> None:
    nodes, config = SUPPLY[name](), load_config(CONFIGS / f"{name}.yaml")
    for ask in asks(config):
        assert place(ask, nodes), f"{ask.role} takes {ask.takes}, left are {[n.left for n in nodes]}"


@pytest.mark.parametrize("name", SUPPLY)
def test_roles_do_not_share_nodes_but_for_judges(name: str) -> None:
    """Custom resources alone decide it: without one of them, a role's actors could be anywhere."""
    nodes, config = SUPPLY[name](), load_config(CONFIGS / f"{name}.yaml")
    groups: dict[str, set[str]] = {}
    for ask in asks(config):
        custom = ask.takes.keys() - {"CPU", "GPU"}
        assert len(custom) == 1, f"{ask.role} names {sorted(custom)}"
        at = place(ask, nodes)
        assert at is not None
        groups.setdefault(at, set()).add(ask.role.split()[0])
    assert all(len(roles) == 1 for roles in groups.values()), groups
    engines = {engine: e.resources for engine, e in config.judge_engines.items()}
    assert engines == {engine: {engine: 1.0} for engine in config.judges.pools}


@pytest.mark.parametrize("name", SUPPLY)
def test_no_gpu_is_left_over(name: str) -> None:
    nodes, config = SUPPLY[name](), load_config(CONFIGS / f"{name}.yaml")
    for ask in asks(config):
        place(ask, nodes)
    assert sum(node.left.get("GPU", 0.0) for node in nodes) == 0


def test_an_actor_too_big_finds_no_place() -> None:
    assert place(Query("rank", {"GPU": 8.0, "trainer": 1.0}), kuberay_nodes()) is None
    assert place(Query("judge", {"GPU": 1.0, "fairness": 1.0}), slurm_nodes()) is None


@pytest.mark.parametrize("name", SUPPLY)
def test_the_configuration_is_for_a_cluster(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    config = load_config(path)
    assert config.ray.address == "auto"
    assert Path(config.run.dir).is_absolute()
    assert not config.run.deterministic  # a promise for CPUs
    if name != "kuberay":
        mounted = (
            CLUSTER / {"ray_up": "ray_up/start_node.sh", "slurm": "slurm/perm_ray.sbatch"}[name]
        ).read_text()
        assert str(Path(config.run.dir).parent) in mounted
    tree = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(tree, dict)
    assert tree.keys() < config.as_dict().keys()  # a delta of base.yaml, not a copy


def test_kuberay_storage_and_tracking_are_the_manifests_own() -> None:
    config = load_config(CONFIGS / "kuberay.yaml")
    spec = yaml.safe_load((CLUSTER / "kuberay" / "raycluster.yaml").read_text(encoding="utf-8"))["spec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        mounts = group["template"]["spec"]["containers"][0]["volumeMounts"]
        assert str(Path(config.run.dir).parent) in [mount["mountPath"] for mount in mounts]
    objects = yaml.safe_load_all((CLUSTER / "kuberay" / "mlflow.yaml").read_text(encoding="utf-8"))
    services = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Service"}
    (port,) = services["mlflow"]["ports"]
    assert config.tracking.mlflow_uri == f"http://mlflow:{port['port']}"
