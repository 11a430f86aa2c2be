"""Run a submitted job on the cluster, `python -m perm_ray.cli.job <arguments of perm-ray train>`.

Not a verb for people: `perm-ray submit` puts it into the job's entry point.
"""

from __future__ import annotations

import sys
from pathlib import Path

from perm_ray.cli.main import run_verb
from perm_ray.cluster.jobs.package import take_secrets

if __name__ == "__main__":
    take_secrets(Path.cwd())  # before anything is imported that reads the environment
    sys.exit(run_verb("train", sys.argv[1:]))
