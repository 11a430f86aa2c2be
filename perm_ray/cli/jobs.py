"""Look after the jobs of a Ray cluster: `perm-ray status`, `logs` and `stop`."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from perm_ray.cli.options import DEFAULT_ADDRESS
from perm_ray.cluster.jobs.client import JobsClient
from perm_ray.cluster.session import authenticate
from perm_ray.runs.directory import RunDirectory

STOP_WAIT_S = 960.0  # longer than the grace that a job has for its checkpoint


def status(options: argparse.Namespace) -> int:
    """List the runs of a cluster, or show one of them."""
    client = connect(options.address)
    if options.run is not None:
        job = client.job(options.run)
        print("\n".join([*job.lines(), *_progress(job.metadata.get("run_dir"))]))
        return 0
    jobs = client.jobs()
    print("\n".join(f"{job.submission_id:<40}{job.status}" for job in jobs) or "No runs yet.")
    return 0


def logs(options: argparse.Namespace) -> int:
    """Print what a run has printed."""
    client = connect(options.address)
    submission_id = client.job(options.run).submission_id
    if options.follow:
        return follow(client, submission_id)
    print(client.logs(submission_id), end="")
    return 0


def stop(options: argparse.Namespace) -> int:
    """Have a run write a checkpoint and end."""
    client = connect(options.address)
    job = client.job(options.run)
    if job.ended:
        print(f"{job.submission_id} has ended already: {job.status}.")
        return 0
    client.stop(job.submission_id)
    if options.no_wait:
        print(f"{job.submission_id} was asked to stop.")
        return 0
    print(f"{job.submission_id} was asked to stop; waiting for its checkpoint ...", flush=True)
    ended = client.wait(job.submission_id, STOP_WAIT_S)
    print(f"{ended.submission_id}: {ended.status}.")
    run_dir = job.metadata.get("run_dir")
    if run_dir is not None:
        print(f"Go on with it: perm-ray submit --config FILE --resume {run_dir}")
    return 0


def resolve_address(given: str | None) -> str:
    """Return the dashboard's address: the option, Ray's own environment variable, or this machine."""
    return given or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS


def connect(given: str | None) -> JobsClient:
    """Return a client of the cluster, with the user's token."""
    address = resolve_address(given)
    authenticate(address)
    return JobsClient(address)


def follow(client: JobsClient, submission_id: str) -> int:
    """Print a job's output until it ends; 0 when it succeeded. Ctrl-C leaves the job running."""

    async def print_all() -> None:
        async for text in client.follow(submission_id):
            print(text, end="", flush=True)

    try:
        asyncio.run(print_all())
    except KeyboardInterrupt:
        print(f"\n{submission_id} goes on: perm-ray stop ends it.")
        return 130
    job = client.wait(submission_id, timeout_s=60)
    print(f"{submission_id}: {job.status}")
    return 0 if job.status == "SUCCEEDED" else 1


def _progress(run_dir: str | None) -> list[str]:
    """Return how far the run is, where its directory can be read from here."""
    if run_dir is None or not Path(run_dir).is_dir():
        return []
    rows = RunDirectory(Path(run_dir)).read_metrics()
    if not rows:
        return ["step            none finished yet"]
    reward = rows[-1].get("reward/mean")
    return [f"step            {rows[-1]['step']:.0f}" + ("" if reward is None else f", reward {reward:.3f}")]
