"""The Kubernetes manifests of cluster/kuberay: each object against the API's own models, strictly, and what
they promise (no root, no secret, nobody from outside). No cluster is needed, and none is shown to run."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

ROOT = Path(__file__).resolve().parents[3]
KUBERAY = ROOT / "cluster" / "kuberay"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCALARS: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "bool": bool, "float": (int, float)}
SCALARS |= {"object": (str, int, dict)}  # IntOrString and the like

# What the ray.io/v1 resources know, by the reference of KubeRay 1.6: names and YAML types.
RAY_FIELDS: dict[str, dict[type, str]] = {
    "RayCluster": {str: "apiVersion kind", dict: "metadata spec"},
    "RayJob": {str: "apiVersion kind", dict: "metadata spec"},
    "RayClusterSpec": {
        str: "rayVersion managedBy",
        bool: "enableInTreeAutoscaling suspend",
        list: "workerGroupSpecs",
        dict: "headGroupSpec authOptions autoscalerOptions headServiceAnnotations gcsFaultToleranceOptions "
        "upgradeStrategy",
    },
    "AuthOptions": {str: "mode secretName", bool: "enableK8sTokenAuth"},
    "HeadGroupSpec": {
        str: "serviceType",
        bool: "enableIngress",
        dict: "headService rayStartParams template resources labels",
    },
    "WorkerGroupSpec": {
        str: "groupName",
        int: "replicas minReplicas maxReplicas numOfHosts idleTimeoutSeconds",
        bool: "suspend",
        dict: "rayStartParams template scaleStrategy resources labels",
    },
    "RayJobSpec": {
        str: "entrypoint submissionMode runtimeEnvYAML jobId entrypointResources managedBy",
        int: "backoffLimit ttlSecondsAfterFinished activeDeadlineSeconds",
        float: "entrypointNumCpus entrypointNumGpus",
        bool: "shutdownAfterJobFinishes suspend",
        dict: "submitterPodTemplate rayClusterSpec clusterSelector metadata submitterConfig deletionStrategy",
    },
}
RAY_REQUIRED = {
    "RayClusterSpec": ("headGroupSpec",),
    "HeadGroupSpec": ("rayStartParams", "template"),
    "WorkerGroupSpec": ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


VALUES = [document for path in sorted(KUBERAY.glob("*.yaml")) for document in documents(path)]
OBJECTS = [pytest.param(value, id=f"{value['kind']}/{value['metadata']['name']}") for value in VALUES]


# ---- against the models -----------------------------------------------------------------------


def built(type_name: str, value: object, at: str) -> Any:
    """`value` as an instance of the client's type of that name; an error names the place."""
    wrapped = re.fullmatch(r"(list|dict)[\[(](?:str, )?(.+)[\])]", type_name)
    if wrapped and wrapped[1] == "list":
        assert isinstance(value, list), f"{at}: a list, found {value!r}"
        return [built(wrapped[2], item, f"{at}[{i}]") for i, item in enumerate(value)]
    if wrapped:
        assert isinstance(value, dict), f"{at}: a mapping, found {value!r}"
        return {key: built(wrapped[2], item, f"{at}.{key}") for key, item in value.items()}
    if type_name in SCALARS:
        right = isinstance(value, SCALARS[type_name]) and (type_name == "bool" or not isinstance(value, bool))
        assert right, f"{at}: {type_name}, found {value!r}"
        return value
    model = getattr(client, type_name)
    assert isinstance(value, dict), f"{at}: {type_name}, found {value!r}"
    attributes = {name: attribute for attribute, name in model.attribute_map.items()}
    unknown = value.keys() - attributes.keys()
    assert not unknown, f"{at}: {type_name} has no {', '.join(sorted(unknown))}"
    fields = {
        attributes[name]: built(model.openapi_types[attributes[name]], item, f"{at}.{name}")
        for name, item in value.items()
    }
    return model(**fields)  # raises ValueError for what is required and missing, or not among the values


def check_ray(type_name: str, value: dict[str, Any], at: str) -> None:
    """The same for KubeRay's resources, whose pod templates are Kubernetes' own."""
    known = {name: kind for kind, names in RAY_FIELDS[type_name].items() for name in names.split()}
    assert value.keys() <= known.keys(), f"{at}: {type_name} has no {sorted(value.keys() - known.keys())}"
    missing = [name for name in RAY_REQUIRED.get(type_name, ()) if name not in value]
    assert not missing, f"{at}: {type_name} needs {missing}"
    for name, item in value.items():
        assert type(item) is known[name], f"{at}.{name}: {known[name].__name__}, found {item!r}"
    if "rayStartParams" in value:
        assert all(isinstance(item, str) for item in value["rayStartParams"].values()), at
    for name in ("template", "submitterPodTemplate"):
        if name in value:
            built("V1PodTemplateSpec", value[name], f"{at}.{name}")
    for name, inner in (("headGroupSpec", "HeadGroupSpec"), ("authOptions", "AuthOptions")):
        if name in value:
            check_ray(inner, value[name], f"{at}.{name}")
    for i, group in enumerate(value.get("workerGroupSpecs", ())):
        check_ray("WorkerGroupSpec", group, f"{at}.workerGroupSpecs[{i}]")
    if "rayClusterSpec" in value:
        check_ray("RayClusterSpec", value["rayClusterSpec"], f"{at}.rayClusterSpec")


def check_object(value: dict[str, Any]) -> None:
    kind, version = value["kind"], value["apiVersion"]
    if version == "ray.io/v1":
        check_ray(kind, value, kind)
        built("V1ObjectMeta", value["metadata"], f"{kind}.metadata")
        check_ray(f"{kind}Spec", value["spec"], f"{kind}.spec")
        return
    versions = {"Deployment": "apps/v1", "StatefulSet": "apps/v1", "NetworkPolicy": "networking.k8s.io/v1"}
    assert version == versions.get(kind, "v1")
    built(f"V1{kind}", value, kind)


@pytest.mark.parametrize("value", OBJECTS)
def test_object_is_what_the_api_takes(value: dict[str, Any]) -> None:
    check_object(value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spec": {"hostNetwrk": True}}, "hostNetwrk"),
        ({"spec": {"replicas": "one"}}, "found 'one'"),
        ({"spec": {"containers": [{"image": "i"}]}}, "name"),
        ({"spec": {"containers": [{"name": "n", "resources": {"limits": {"cpu": 8}}}]}}, "found 8"),
        ({"spec": {"containers": []}, "metadata": []}, "V1ObjectMeta"),
    ],
)
def test_the_check_sees_mistakes(change: dict[str, Any], said: str) -> None:
    kind = "V1Deployment" if "replicas" in change["spec"] else "V1Pod"
    with pytest.raises((AssertionError, ValueError), match=said):
        built(kind, change, "it")


def test_the_check_sees_mistakes_in_ray() -> None:
    (cluster,) = documents(KUBERAY / "raycluster.yaml")
    cluster["spec"]["workerGroupSpecs"][0]["replica"] = 2
    with pytest.raises(AssertionError, match="replica"):
        check_object(cluster)


# ---- what they promise --------------------------------------------------------------------------


def pods(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every pod template in an object."""
    for key, item in value.items():
        if key in ("template", "submitterPodTemplate"):
            yield item
        elif isinstance(item, dict):
            yield from pods(item)
        elif isinstance(item, list):
            for entry in item:
                if isinstance(entry, dict):
                    yield from pods(entry)


def containers(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for pod in pods(value):
        yield from pod["spec"].get("initContainers", ())
        yield from pod["spec"]["containers"]


@pytest.mark.parametrize("value", OBJECTS)
def test_pods_are_confined(value: dict[str, Any]) -> None:
    assert value["kind"] == "Namespace" or value["metadata"]["namespace"] == "perm-ray"
    for pod in pods(value):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert not any("hostPath" in volume for volume in spec.get("volumes", ()))
    for container in containers(value):
        context, resources = container["securityContext"], container["resources"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert resources["requests"] == resources["limits"]
        assert {"cpu", "memory"} <= resources["limits"].keys()


@pytest.mark.parametrize("value", OBJECTS)
def test_images_are_pinned_and_of_this_version(value: dict[str, Any]) -> None:
    for container in containers(value):
        name, _, tag = container["image"].rpartition(":")
        assert name, container["image"]
        assert re.match(r"\d|RELEASE\.\d", tag), container["image"]
        if name.endswith("/perm-ray"):
            assert tag == f"{PROJECT['version']}-gpu"


def test_ray_version_is_that_of_the_package() -> None:
    (pin,) = [d for d in PROJECT["dependencies"] if d.startswith("ray[")]
    lower = re.search(r">=([\d.]+)", pin)
    assert lower is not None
    lock = (ROOT / "requirements" / "gpu.lock").read_text(encoding="utf-8")
    (cluster,) = documents(KUBERAY / "raycluster.yaml")
    version = cluster["spec"]["rayVersion"]
    assert version.startswith(lower[1] + ".")
    assert f"\nray=={version} " in lock


def test_rayjob_has_the_same_cluster() -> None:
    (cluster,) = documents(KUBERAY / "raycluster.yaml")
    (job,) = documents(KUBERAY / "rayjob.yaml")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    assert "/app/configs/clusters/kuberay.yaml" in job["spec"]["entrypoint"].split()


def test_the_cluster_asks_for_a_token_and_shows_the_dashboard_to_nobody() -> None:
    (cluster,) = documents(KUBERAY / "raycluster.yaml")
    head = cluster["spec"]["headGroupSpec"]
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert head["serviceType"] == "ClusterIP"
    assert "enableIngress" not in head
    assert head["rayStartParams"]["num-cpus"] == "0"


def test_the_object_store_fits_into_shared_memory() -> None:
    (cluster,) = documents(KUBERAY / "raycluster.yaml")
    for group in [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (shm,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert (mounts["shm"], shm["medium"]) == ("/dev/shm", "Memory")
        assert (
            int(group["rayStartParams"]["object-store-memory"])
            < int(shm["sizeLimit"].removesuffix("Gi")) * 2**30
        )


def test_secrets_are_named_and_never_given() -> None:
    given = {}
    for secret in documents(KUBERAY / "secrets.example.yaml"):
        assert set(secret["stringData"].values()) == {"REPLACE_ME"}
        given[secret["metadata"]["name"]] = set(secret["stringData"])
    secret_name = re.compile("PASSWORD|TOKEN|SECRET|ACCESS_KEY|ROOT_USER")
    asked = set()
    for value in VALUES:
        for container in containers(value):
            for variable in container.get("env", ()):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                assert reference or not secret_name.search(variable["name"]), variable["name"]
                if reference:
                    assert reference["key"] in given[reference["name"]], reference
                    asked.add((reference["name"], reference["key"]))
    assert asked == {(name, key) for name, keys in given.items() for key in keys}


def test_claims_and_services_are_there() -> None:
    claims = {v["metadata"]["name"] for v in VALUES if v["kind"] == "PersistentVolumeClaim"}
    (claim,) = documents(KUBERAY / "pvc.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    labels = [pod["metadata"]["labels"] for value in VALUES for pod in pods(value)]
    for value in VALUES:
        for pod in pods(value):
            volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
            own = {template["metadata"]["name"] for template in value["spec"].get("volumeClaimTemplates", ())}
            for container in [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]:
                mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
                assert mounted <= volumes.keys() | own
            asked = {
                v["persistentVolumeClaim"]["claimName"]
                for v in volumes.values()
                if len(v) > 1 and "persistentVolumeClaim" in v
            }
            assert asked <= claims
        if value["kind"] == "Service":
            assert any(value["spec"]["selector"].items() <= label.items() for label in labels)


def test_only_its_own_pods_reach_the_cluster() -> None:
    policies = {
        policy["metadata"]["name"]: policy["spec"] for policy in documents(KUBERAY / "networkpolicy.yaml")
    }
    assert policies["deny"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for label in [pod["metadata"]["labels"] for value in VALUES for pod in pods(value)]:
        chosen = [
            s
            for s in policies.values()
            if s["podSelector"].get("matchLabels", {"": ""}).items() <= label.items()
        ]
        assert len(chosen) == 1, label
    for spec in policies.values():
        for rule in spec.get("ingress", ()):
            for source in rule["from"]:
                assert source["podSelector"]["matchLabels"], "everybody may come in"
                assert "ipBlock" not in source
                if "namespaceSelector" in source:
                    assert [port["port"] for port in rule["ports"]] == [8265]
