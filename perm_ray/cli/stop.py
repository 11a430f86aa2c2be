"""`perm-ray stop RUN`: have a run in a Ray cluster write a checkpoint and end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from perm_ray.cli.jobs import add_address, connect

WAIT_S = 960.0  # longer than the grace that a job has for its checkpoint


def parser() -> argparse.ArgumentParser:
    """The options of `perm-ray stop`."""
    parser = argparse.ArgumentParser(prog="perm-ray stop", description="Checkpoint a run and end it.")
    add_address(parser)
    parser.add_argument("--no-wait", action="store_true", help="do not wait until it has ended")
    parser.add_argument("run", help="name of the run", metavar="RUN")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Returns the exit code; raises `PermRayError`s for `cli.py` to print."""
    options = parser().parse_intermixed_args(arguments)
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
    ended = client.wait(job.submission_id, WAIT_S)
    print(f"{ended.submission_id}: {ended.status}.")
    run_dir = job.metadata.get("run_dir")
    if run_dir is not None:
        print(f"Go on with it: perm-ray submit --config FILE --resume {run_dir}")
    return 0


if __name__ == "__main__":
    from perm_ray.cli.main import run_verb

    sys.exit(run_verb("stop", sys.argv[1:]))
