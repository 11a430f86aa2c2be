"""Find the examples that ship with the package: `builtin:graded` for judges, `builtin:demos` for policies.

Rows of the first are those of `perm-ray judge calibrate` (persona, scenario, query, analysis, response and
labels), with the kind of answer and one sentence of reason; rows of the second have no labels.
`sets/GRADED.md` and `sets/DEMOS.md` are the data cards.
"""

from __future__ import annotations

from pathlib import Path

from perm_ray.data.items import ExampleRows, read_examples
from perm_ray.errors import DataError

GRADED, DEMOS = "builtin:graded", "builtin:demos"
_FOLDER = Path(__file__).parent / "sets"


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
    return _FOLDER / f"{source.removeprefix('builtin:')}.jsonl"


def read_demonstrations(source: str) -> ExampleRows:
    """Return the demonstrations of a JSONL file or of `builtin:demos`.

    Raises:
        DataError: It lists every problem; a demonstration without an analysis is one.
    """
    examples = read_examples(examples_file(source))
    without = [item.item_id for item in examples.items if item.sections.analysis is None]
    if without:
        raise DataError(
            f"A demonstration needs analysis and response, but {source} has no analysis in "
            f"{', '.join(without[:20])}{' and others' if len(without) > 20 else ''}: add it."
        )
    return examples
