"""`perm-ray <verb>`: find the verb, parse its options and hand over.

`options.py` declares the verbs; the module of one is imported only when it is run.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from perm_ray.cli.options import VERBS, parser_of
from perm_ray.config.redact import redact_text
from perm_ray.errors import Interrupted, PermRayError, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code (0 done, 1 the run failed, 2 something given was wrong)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for verb in VERBS:
        words = verb.split()
        if arguments[: len(words)] == words:
            return run_verb(verb, arguments[len(words) :])
    groups = {verb.split()[0] for verb in VERBS if " " in verb}
    group = [arguments.pop(0)] if arguments and arguments[0] in groups else []
    program = " ".join(["perm-ray", *group])
    usage = _usage(program, [verb for verb in VERBS if verb.split()[: len(group)] == group])
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return 0 if arguments else 2
    print(f"{program}: there is no verb {arguments[0]!r}.\n\n{usage}", file=sys.stderr)
    return 2


def run_verb(verb: str, arguments: Sequence[str]) -> int:
    """Run one verb of `VERBS`; errors that are meant for people are printed as they are."""
    try:
        return call(verb, arguments)
    except PermRayError as error:
        print(f"perm-ray {verb}: {redact_text(str(error))}", file=sys.stderr)
        if isinstance(error, UserError):
            return 2
        return 130 if isinstance(error, Interrupted) else 1


def call(verb: str, arguments: Sequence[str]) -> int:
    """Run one verb of `VERBS`; returns the exit code. Raises `PermRayError`s."""
    options = parser_of(verb).parse_intermixed_args(arguments)
    module, _, function = VERBS[verb].target.rpartition(".")
    return getattr(importlib.import_module(f"perm_ray.cli.{module}"), function)(options)


def _usage(program: str, verbs: Sequence[str]) -> str:
    lines = [f"usage: {program} <verb> [options]", "", "verbs:"]
    width = max(map(len, verbs)) + 2
    lines += [f"  {verb:<{width}}{VERBS[verb].says}" for verb in verbs]
    return "\n".join([*lines, "", "perm-ray <verb> --help shows a verb's options."])


if __name__ == "__main__":
    sys.exit(main())
