"""`perm-ray <verb>`: finds the verb and hands over. Each verb is a file of this package.

Nothing heavy is imported here: `--help` must answer at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from perm_ray.config.redact import redact_text
from perm_ray.errors import Interrupted, PermRayError, UserError

VERBS = {
    "train": "train a policy with PERM's reward",
    "finetune": "teach a policy from demonstrations, before it learns from rewards",
    "plan": "what a configuration takes: memory of every GPU, and a step's time",
    "judge": "judge texts without a policy: score, probe, calibrate, compare",
    "submit": "run perm-ray train as a job of a Ray cluster",
    "status": "the runs of a Ray cluster, or one of them",
    "logs": "what a run in a Ray cluster has printed",
    "stop": "checkpoint a run in a Ray cluster and end it",
    "doctor": "look at the machine, the cluster and the services, with remedies",
    "report": "a run directory as one HTML page: curves, times, every rollout with its judgments",
    "feedback": "what people said in MLflow of a run: pull",
    "benchmark": "measure on this machine: loop, rollout, judging, trainer, operations and others",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code (0 done, 1 the run failed, 2 something given was wrong)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        print(f"perm-ray: there is no verb {verb!r}.\n\n{_usage()}", file=sys.stderr)
        return 2
    return run_verb(verb, rest)


def run_verb(verb: str, arguments: Sequence[str]) -> int:
    """Run `perm_ray/cli/<verb>.py`; errors that are meant for people are printed as they are."""
    module = importlib.import_module(f"perm_ray.cli.{verb}")
    try:
        return module.run(arguments)
    except UserError as error:
        print(f"perm-ray {verb}: {redact_text(str(error))}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(f"perm-ray {verb}: {redact_text(str(error))}", file=sys.stderr)
        return 130
    except PermRayError as error:
        print(f"perm-ray {verb}: {redact_text(str(error))}", file=sys.stderr)
        return 1


def _usage() -> str:
    lines = ["usage: perm-ray <verb> [options]", "", "verbs:"]
    lines += [f"  {verb:<12}{text}" for verb, text in VERBS.items()]
    lines += ["", "perm-ray <verb> --help shows a verb's options."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
