"""`perm-ray status [RUN]`: the runs of a Ray cluster, or one of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from perm_ray.cli.jobs import add_address, connect


def parser() -> argparse.ArgumentParser:
    """The options of `perm-ray status`."""
    parser = argparse.ArgumentParser(prog="perm-ray status", description="The runs of a Ray cluster, or one.")
    add_address(parser)
    parser.add_argument(
        "run", nargs="?", default=None, help="name of a run; without it: all runs", metavar="RUN"
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Returns the exit code; raises `PermRayError`s for `cli.py` to print."""
    options = parser().parse_intermixed_args(arguments)
    client = connect(options.address)
    if options.run is not None:
        job = client.job(options.run)
        print("\n".join([*job.lines(), *_progress(job.metadata.get("run_dir"))]))
        return 0
    jobs = client.jobs()
    print("\n".join(f"{job.submission_id:<40}{job.status}" for job in jobs) or "No runs yet.")
    return 0


def _progress(run_dir: str | None) -> list[str]:
    """Return how far the run is, where its directory can be read from here."""
    from perm_ray.runs.directory import RunDirectory

    if run_dir is None or not Path(run_dir).is_dir():
        return []
    rows = RunDirectory(Path(run_dir)).read_metrics()
    if not rows:
        return ["step            none finished yet"]
    reward = rows[-1].get("reward/mean")
    return [f"step            {rows[-1]['step']:.0f}" + ("" if reward is None else f", reward {reward:.3f}")]


if __name__ == "__main__":
    from perm_ray.cli.main import run_verb

    sys.exit(run_verb("status", sys.argv[1:]))
