"""Share between submit, status, logs and stop: the address, and following a job's output."""

from __future__ import annotations

import argparse
import asyncio
import os
from typing import TYPE_CHECKING

from perm_ray.cluster.session import authenticate

if TYPE_CHECKING:
    from perm_ray.cluster.jobs.client import JobsClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"


def add_address(parser: argparse.ArgumentParser) -> None:
    """The option `--address`."""
    parser.add_argument(
        "--address",
        default=None,
        help=f"the head node's dashboard (default: RAY_API_SERVER_ADDRESS, or {DEFAULT_ADDRESS})",
        metavar="URL",
    )


def resolve_address(given: str | None) -> str:
    """The dashboard's address: the option, Ray's own environment variable, or this machine."""
    return given or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS


def connect(given: str | None) -> JobsClient:
    """A client of the cluster, with the user's token."""
    address = resolve_address(given)
    authenticate(address)
    from perm_ray.cluster.jobs.client import JobsClient

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
