"""`perm-ray judge VERB`: the judges without a policy. Each verb is a file of `perm_ray/cli/judging/`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

VERBS = {
    "score": "score every line of a file: PERM as a reward model",
    "probe": "do the judges withstand attacks, and order what is plain to order?",
    "calibrate": "do the judges agree with people?",
    "train": "teach a judge from ratings",
    "compare": "do two judges, or two rubrics, agree with each other?",
}


def run(arguments: Sequence[str]) -> int:
    """Returns the exit code; raises `PermRayError`s for `cli.py` to print."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        print(f"perm-ray judge: there is no verb {verb!r}.\n\n{_usage()}", file=sys.stderr)
        return 2
    return importlib.import_module(f"perm_ray.cli.judging.{verb}").run(rest)


def _usage() -> str:
    lines = ["usage: perm-ray judge <verb> [options]", "", "verbs:"]
    lines += [f"  {verb:<12}{text}" for verb, text in VERBS.items()]
    lines += ["", "perm-ray judge <verb> --help shows a verb's options."]
    return "\n".join(lines)


if __name__ == "__main__":
    from perm_ray.cli.main import run_verb

    sys.exit(run_verb("judge", sys.argv[1:]))
