"""Reads replies that people have rated, in the project's own JSONL or in two public formats.

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
from typing import Literal

from perm_ray.data.items import FIELDS, item_of, note_repeated
from perm_ray.data.tables import Problems, Row, json_rows
from perm_ray.errors import DataError
from perm_ray.evaluation.calibration.labelled import (
    Dimension,
    LabelledItem,
    LabelledSet,
    map_dimensions,
    oriented,
)
from perm_ray.evaluation.calibration.labels_csv import read_epitome, read_lend_an_ear
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES
from perm_ray.types import JudgeItem, Scale

LabelFormat = Literal["jsonl", "epitome", "lend-an-ear"]
FORMATS: tuple[LabelFormat, ...] = ("jsonl", "epitome", "lend-an-ear")

_LABEL_FIELDS = (*FIELDS, "labels", "model_labels", "scale")

Raw = dict[str, dict[str, float]]


def read_labels(
    path: Path,
    format: LabelFormat,
    dimension_map: Mapping[str, str] | None = None,
    scales: Mapping[str, Scale] | None = None,
) -> LabelledSet:
    """The rated replies at `path`. Raises one `DataError` that lists every problem.

    `dimension_map` goes before the format's own map (dimension: perspective, "-perspective" or "none").
    `scales` are those of JSONL rows that do not give them; the public formats have their own.
    """
    own = dimension_map or {}
    if format == "epitome":
        return read_epitome(path, own)
    if format == "lend-an-ear":
        return read_lend_an_ear(path, own)
    return _read_jsonl(path, own, dict(scales or {}))


def _read_jsonl(path: Path, own: Mapping[str, str], scales: dict[str, Scale]) -> LabelledSet:
    problems = Problems()
    rows: list[tuple[JudgeItem, Raw, Raw]] = []
    lines: dict[str, int] = {}
    for row in json_rows(path, problems):
        item = item_of(row, _LABEL_FIELDS)
        note_repeated(row, item.item_id, lines)
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
    dimensions = map_dimensions({name: scales[name] for name in used}, default, own)
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
    """The ratings of dimensions that people rated, each turned the way its dimension says."""
    return {
        name: {rater: oriented(value, dimensions[name]) for rater, value in by_rater.items()}
        for name, by_rater in ratings.items()
        if name in dimensions
    }
