"""Read replies that people have rated. `pipelines/` has recipes that write two public sets in this form.

A row of the neutral JSONL is one of `items.py` (persona, scenario, query or dialogue, response, and the
optional ones) with ratings::

    {..., "labels": {"expression": {"ana": 4, "ben": 5}, "reception": {"ana": 3}},
          "model_labels": {"expression": {"some-model": 4}},
          "scale": {"expression": [1, 5], "reception": [1, 5]}}

`labels` has what each person gave, by dimension and rater; a rater who is missing (or null) did not
rate. `model_labels` has the same of models, for comparison. `scale` has the lowest and the highest
rating of each dimension, a whole number each, equal in all rows; `--scale expression=1:5` says it once
for all rows instead. A dimension with the name of a perspective is held against it; `--map` says so for
others, and turns them over where the highest rating is the worst (`--map coldness=-expression`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from perm_ray.data.items import FIELDS, item_of
from perm_ray.data.tables import Problems, Row, json_rows
from perm_ray.errors import DataError
from perm_ray.evaluation.calibration.labelled import (
    Dimension,
    LabelledItem,
    LabelledSet,
    map_dimensions,
    oriented,
)
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES
from perm_ray.types import JudgeItem, Scale

_LABEL_FIELDS = (*FIELDS, "labels", "model_labels", "scale")

Raw = dict[str, dict[str, float]]


def read_labels(
    path: Path, own: Mapping[str, str] | None = None, given_scales: Mapping[str, Scale] | None = None
) -> LabelledSet:
    """Read the rated replies at `path`.

    Args:
        path: A JSONL file.
        own: The perspective of a dimension ("-perspective" turns it over, "none" leaves it out), before the
            default, which is the perspective of the dimension's name.
        given_scales: The scales of dimensions whose rows do not give them.

    Raises:
        DataError: It lists every problem.
    """
    scales = dict(given_scales or {})
    problems = Problems()
    rows: list[tuple[JudgeItem, Raw, Raw]] = []
    lines: dict[str, int] = {}
    for row in json_rows(path, problems):
        item = item_of(row, _LABEL_FIELDS)
        row.check_unique(item.item_id, lines)
        _take_scales(row, scales)
        labels, models = _ratings(row, "labels", scales), _ratings(row, "model_labels", scales)
        rows.append((item, labels, models))
    problems.settle(path)
    used = list(dict.fromkeys(name for _, labels, _ in rows for name in labels))
    if not used:
        raise DataError(
            f"{path} has no labels: give each row a field labels, {{perspective: {{rater: value}}}}."
        )
    default = {name: name for name in used if name in BUILTIN_PERSPECTIVES}
    dimensions = map_dimensions({name: scales[name] for name in used}, default, own or {})
    by_name = {dimension.name: dimension for dimension in dimensions}
    items = tuple(
        LabelledItem(item, _oriented(labels, by_name), _oriented(models, by_name))
        for item, labels, models in rows
    )
    return LabelledSet(path.name, items, dimensions)


def _take_scales(row: Row, scales: dict[str, Scale]) -> None:
    """Note the scales that a row gives; every row must give the same."""
    given = row.data.get("scale")
    if given is None:
        return
    if not isinstance(given, dict):
        row.complain("scale", "an object {dimension: [lowest, highest]}", given)
        return
    for name, ends in given.items():
        whole = isinstance(ends, list) and len(ends) == 2 and all(type(end) is int for end in ends)
        if not whole or ends[0] >= ends[1]:
            row.complain(f"scale.{name}", "two whole numbers, the lower first", ends)
        elif scales.setdefault(name, Scale(*ends)) != Scale(*ends):
            known = scales[name]
            row.complain(f"scale.{name}", f"[{known.low}, {known.high}], as in the rows before", ends)


def _ratings(row: Row, where: str, scales: Mapping[str, Scale]) -> Raw:
    given = row.data.get(where)
    if given is None:
        return {}
    if not isinstance(given, dict):
        row.complain(where, "an object {dimension: {rater: value}}", given)
        return {}
    found: Raw = {}
    for name, by_rater in given.items():
        if name not in scales:
            row.complain(f"scale.{name}", "the scale of this dimension, in the row or by --scale", None)
        elif not isinstance(by_rater, dict):
            row.complain(f"{where}.{name}", "an object {rater: value}", by_rater)
        else:
            values = {
                rater: row.rating(f"{where}.{name}.{rater}", value, scales[name])
                for rater, value in by_rater.items()
            }
            found[name] = {rater: value for rater, value in values.items() if value is not None}
    return found


def _oriented(ratings: Raw, dimensions: Mapping[str, Dimension]) -> Raw:
    """Return the ratings of dimensions that people rated, each turned the way its dimension says."""
    return {
        name: {rater: oriented(value, dimensions[name]) for rater, value in by_rater.items()}
        for name, by_rater in ratings.items()
        if name in dimensions
    }
