"""`perm-ray logs RUN`: what a run in a Ray cluster has printed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from perm_ray.cli.jobs import add_address, connect, follow


def parser() -> argparse.ArgumentParser:
    """The options of `perm-ray logs`."""
    parser = argparse.ArgumentParser(prog="perm-ray logs", description="What a run has printed.")
    add_address(parser)
    parser.add_argument("--follow", "-f", action="store_true", help="go on until it ends")
    parser.add_argument("run", help="name of the run", metavar="RUN")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Returns the exit code; raises `PermRayError`s for `cli.py` to print."""
    options = parser().parse_intermixed_args(arguments)
    client = connect(options.address)
    submission_id = client.job(options.run).submission_id
    if options.follow:
        return follow(client, submission_id)
    print(client.logs(submission_id), end="")
    return 0


if __name__ == "__main__":
    from perm_ray.cli.main import run_verb

    sys.exit(run_verb("logs", sys.argv[1:]))
