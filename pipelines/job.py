"""What a submitted job runs on the cluster, `python -m pipelines.job <arguments of perm-ray train>`.

Not a verb for people: `perm-ray submit` puts it into the job's entry point.
"""

from __future__ import annotations

import sys
from pathlib import Path

from perm_ray.jobs.package import take_secrets
from pipelines.cli import run_verb

if __name__ == "__main__":
    take_secrets(Path.cwd())  # before anything is imported that reads the environment
    sys.exit(run_verb("train", sys.argv[1:]))
