"""`perm-ray feedback pull RUN`: write the feedback that people gave in MLflow as rated replies.

There is one line for each rated reply, in the format of `perm-ray judge calibrate`, with every single
feedback under `raters`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from perm_ray.config.load import load_config
from perm_ray.files import write_jsonl_atomic
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, load_perspective
from perm_ray.tracking.feedback import find_run, pull_feedback
from perm_ray.tracking.mlflow_client import tracking_uri


def run(options: argparse.Namespace) -> int:
    """Write the file and print how many replies are in it."""
    directory = Path(options.run)
    configured = None
    if (directory / "config.yaml").is_file():
        configured = tracking_uri(load_config(directory / "config.yaml").tracking, directory)
    run_id, uri = find_run(options.run, options.uri, configured)
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
