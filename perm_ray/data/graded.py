"""Find the graded answers that ship with the package: `builtin:graded`, and its best as `builtin:demos`.

The rows are those of `perm-ray judge calibrate` (persona, scenario, query, analysis, response, labels), with
the kind of answer and one sentence of reason; `sets/GRADED.md` is the data card.
"""

from __future__ import annotations

import json
from pathlib import Path

from perm_ray.data.items import ExampleRows, read_examples
from perm_ray.errors import DataError

SEVERAL_TURNS = "several turns"  # the tag of conversations whose replies stand numbered in one text
GRADED, DEMOS = "builtin:graded", "builtin:demos"
_FILE = Path(__file__).parent / "sets" / "graded.jsonl"
# The lowest grades of a demonstration; the bystander's is of 100.
_LOWEST = {"resonation": 4, "expression": 4, "reception": 4, "bystander": 75}


def examples_file(source: str) -> Path:
    """Return the file behind a name or a path.

    Raises:
        DataError: There is no built-in set of that name.
    """
    if not source.startswith("builtin:"):
        return Path(source).expanduser()
    if source not in (GRADED, DEMOS):
        raise DataError(
            f"There is no built-in set of examples {source!r}: the names are {GRADED} and {DEMOS}."
        )
    return _FILE


def read_demonstrations(source: str) -> ExampleRows:
    """Return the demonstrations of a JSONL file, or of `builtin:demos`: the answers with the best grades.

    Raises:
        DataError: It lists every problem; a demonstration without an analysis is one.
    """
    examples = read_examples(examples_file(source))
    if source == DEMOS:
        best = _best_ids()
        return ExampleRows(tuple(i for i in examples.items if i.item_id in best), examples.splits)
    without = [item.item_id for item in examples.items if item.sections.analysis is None]
    if without:
        raise DataError(
            f"A demonstration needs analysis and response, but {source} has no analysis in "
            f"{', '.join(without[:20])}{' and others' if len(without) > 20 else ''}: add it."
        )
    return examples


def _best_ids() -> set[str]:
    rows = map(json.loads, _FILE.read_text(encoding="utf-8").splitlines())
    return {
        row["id"]
        for row in rows
        if SEVERAL_TURNS not in row["tags"]
        and all(min(row["labels"][name].values()) >= lowest for name, lowest in _LOWEST.items())
    }
