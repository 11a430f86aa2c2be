"""`perm-ray submit`: send a run as a job of a Ray cluster, through its Jobs API.

The configuration, the data and the live cluster are checked here, before anything is sent.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from perm_ray.cli.jobs import connect, follow, resolve_address
from perm_ray.cluster.jobs import variables
from perm_ray.cluster.jobs.client import JobsClient
from perm_ray.cluster.jobs.package import CONFIG_FILE, make_package, secrets_from
from perm_ray.cluster.placement import demands
from perm_ray.config import CONFIGS
from perm_ray.config.load import load_config
from perm_ray.config.redact import redact_text
from perm_ray.config.schema import Config
from perm_ray.errors import ConfigError, RunError
from perm_ray.runs.directory import run_path
from perm_ray.runs.run_plan import plan_run
from perm_ray.tracking.environment import git_state
from perm_ray.tracking.mlflow_report import end_run, open_run

# Ray's own is 3 s, and a checkpoint of a large model takes minutes; most stops need far less.
STOP_GRACE_S = 900


def run(options: argparse.Namespace) -> int:
    """Check the run, send it as a job and print how to look after it."""
    secrets = secrets_from(options.env, os.environ)
    config = _for_cluster(load_config(options.config, options.overrides), options.resume)
    address = resolve_address(options.address)
    plan_run(config)
    client = connect(address)
    if not options.wait_for_resources:
        client.check_resources(demands(config))
    with tempfile.TemporaryDirectory(prefix="perm-ray-job-") as folder:
        config = make_package(Path(folder), config, secrets, with_code=not options.installed)
        submission_id = _submit(client, config, Path(folder), options.resume)
    at = f"--address {address} " if options.address else ""
    print(f"Submitted {submission_id} to {address}.")
    print(f"  perm-ray status {at}{config.run.name}")
    print(f"  perm-ray logs {at}--follow {config.run.name}")
    print(f"  perm-ray stop {at}{config.run.name}", flush=True)
    return follow(client, submission_id) if options.follow else 0


def _for_cluster(config: Config, resume: str | None) -> Config:
    """Give the run a name and check what a run in a cluster cannot do without."""
    directory = str(Path(resume).parent) if resume else config.run.dir
    if not Path(directory).is_absolute():
        raise ConfigError(
            f"run.dir must be an absolute path on storage that all nodes share, found {directory!r}: a job's "
            "own folder is gone when it ends."
        )
    uri = config.tracking.mlflow_uri
    if uri is not None and "://" not in uri:
        raise ConfigError(
            f"tracking.mlflow_uri must be an address for a job, found {uri!r}: begin it with http://."
        )
    path = Path(resume) if resume else run_path(config.run, datetime.now())
    return replace(
        config,
        run=replace(config.run, name=path.name, dir=str(path.parent)),
        ray=replace(config.ray, address=config.ray.address or "auto"),
    )


def _submit(client: JobsClient, config: Config, folder: Path, resume: str | None) -> str:
    name = config.run.name
    assert name is not None
    arguments = ["--config", CONFIG_FILE, *(["--resume", resume] if resume else [])]
    env = {
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S),
        variables.DASHBOARD_URL: client.address,
        "PYTHONUNBUFFERED": "1",
    }
    metadata = {"run_dir": str(Path(config.run.dir) / name)}
    git = git_state(CONFIGS.parent)
    if git is not None:
        env[variables.GIT_SHA] = metadata["git_sha"] = str(git["sha"])
    mlflow_run_id = None if resume else _open_mlflow_run(config)
    if mlflow_run_id is not None:
        env[variables.MLFLOW_RUN_ID] = metadata["mlflow_run_id"] = mlflow_run_id
        metadata["mlflow_uri"] = redact_text(str(config.tracking.mlflow_uri))
    try:
        return client.submit(name, folder, arguments, env, metadata)
    except Exception:
        if mlflow_run_id is not None:
            end_run(config.tracking, mlflow_run_id)
        raise


def _open_mlflow_run(config: Config) -> str | None:
    """Open the MLflow run that the job goes on with, so that the job's description can name it.

    None when there is no server, or it is out of reach from here: the job then opens its own.
    """
    if not config.tracking.mlflow or config.tracking.mlflow_uri is None:
        return None
    try:
        return open_run(config.tracking, str(config.run.name))
    except RunError as error:
        print(f"{error} The job will open its own MLflow run.", file=sys.stderr)
        return None
