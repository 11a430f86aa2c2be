"""Which perspectives there are. A fifth one is one new file, one rubric and one line here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

from perm_ray.errors import ConfigError
from perm_ray.judges.bystander import Bystander
from perm_ray.judges.expression import Expression
from perm_ray.judges.guard import DEFAULT_MAX_CHARS
from perm_ray.judges.perspective import Perspective, Rubric, load_rubric
from perm_ray.judges.reception import Reception
from perm_ray.judges.resonation import Resonation

PERSPECTIVES: Mapping[str, Callable[[Rubric, int], Perspective]] = {
    "resonation": Resonation,
    "expression": Expression,
    "reception": Reception,
    "bystander": Bystander,
}


def build_perspective(
    name: str, rubric_path: str | Path | None = None, max_chars: int = DEFAULT_MAX_CHARS
) -> Perspective:
    """The perspective `name` with its own rubric, or the one at `rubric_path`.

    `max_chars` caps how much of a completion its judge reads.
    """
    if name not in PERSPECTIVES:
        nearest = difflib.get_close_matches(name, PERSPECTIVES, n=1, cutoff=0.0)[0]
        known = ", ".join(PERSPECTIVES)
        raise ConfigError(
            f"judges.pools has no perspective {name!r} (there are {known}): did you mean {nearest!r}?"
        )
    return PERSPECTIVES[name](load_rubric(name, rubric_path), max_chars)
