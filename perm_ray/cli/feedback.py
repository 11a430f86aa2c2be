"""`perm-ray feedback pull RUN`: the feedback that people gave in MLflow, as rated replies in a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The options of `perm-ray feedback`."""
    parser = argparse.ArgumentParser(
        prog="perm-ray feedback", description="What people said in MLflow of a run's rollouts."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="pull")
    pull = verbs.add_parser(
        "pull",
        help="write it as JSON lines that perm-ray judge calibrate reads",
        description=(
            "Write the feedback that people gave in MLflow on a run's rollouts: one line for each rated "
            "reply, in the format of perm-ray judge calibrate, with every single feedback under `raters`."
        ),
    )
    pull.add_argument("run", help="a run directory, or an MLflow run id (with --uri)", metavar="RUN")
    pull.add_argument(
        "--out",
        type=Path,
        default=None,
        metavar="FILE",
        help="default: human_feedback.jsonl in the run directory, or here",
    )
    pull.add_argument("--uri", default=None, help="where MLflow is; default: where the run was tracked")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Returns the exit code; raises `PermRayError`s for `cli.py` to print."""
    options = parser().parse_args(arguments)
    from perm_ray.files import write_jsonl_atomic
    from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, load_perspective
    from perm_ray.tracking.feedback import find_run, pull_feedback

    directory = Path(options.run)
    run_id, uri = find_run(options.run, options.uri, _configured_uri(directory))
    scales = {name: load_perspective(name).scale for name in BUILTIN_PERSPECTIVES}
    pulled = pull_feedback(uri, run_id, scales)
    if not pulled.rows:
        print(f"Nobody has given feedback on run {run_id} yet; nothing was written.")
        return 0
    default = (directory if directory.is_dir() else Path.cwd()) / "human_feedback.jsonl"
    file = options.out or default
    write_jsonl_atomic(file, pulled.rows)
    print(f"{pulled.num_feedbacks} feedbacks on {len(pulled.rows)} replies: {file}")
    if pulled.num_without_rating:
        print(
            f"{pulled.num_without_rating} of them are no number on the scale of a perspective: they are "
            "under `raters` only."
        )
    print(f"Compare a judge with them: perm-ray judge calibrate --data {file}")
    return 0


def _configured_uri(directory: Path) -> str | None:
    """Return where the run in `directory` is tracked, by its own configuration."""
    if not (directory / "config.yaml").is_file():
        return None
    from perm_ray.config.load import load_config
    from perm_ray.tracking.mlflow_client import tracking_uri

    return tracking_uri(load_config(directory / "config.yaml").tracking, directory)


if __name__ == "__main__":
    from perm_ray.cli.main import run_verb

    sys.exit(run_verb("feedback", sys.argv[1:]))
