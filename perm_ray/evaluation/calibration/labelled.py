"""Replies that people have rated: what a calibration compares a judge with. Frozen data.

People rate *dimensions* (a data set's own words, such as `validating_emotions`). A dimension is held
against the perspective that asks the same question, or against none; raters are compared among
themselves on every dimension.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from perm_ray.errors import DataError
from perm_ray.evaluation.calibration.resampling import Array
from perm_ray.types import JudgeItem, Scale

Labels = Mapping[str, Mapping[str, float]]  # dimension, rater: value on the dimension's scale


@dataclass(frozen=True, slots=True)
class Dimension:
    """A thing that people rated. `turned` says that its labels were mirrored on the scale (5 became 1),
    because the data set's own highest rating is the worst."""

    name: str
    scale: Scale
    perspective: str | None
    turned: bool = False


@dataclass(frozen=True, slots=True)
class LabelledItem:
    """A reply and its ratings, those of people and those of models apart."""

    item: JudgeItem
    labels: Labels
    model_labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """A data set of rated replies; `source` is the name of its file or folder."""

    source: str
    items: tuple[LabelledItem, ...]
    dimensions: tuple[Dimension, ...]

    def raters(self, dimension: str, models: bool = False) -> tuple[str, ...]:
        """Return who rated a dimension: people, or models."""
        names: dict[str, None] = {}  # in the order they come
        for item in self.items:
            names |= dict.fromkeys((item.model_labels if models else item.labels).get(dimension, ()))
        return tuple(names)

    def ratings(self, dimension: str, raters: Sequence[str], models: bool = False) -> Array:
        """Return the ratings, shape (items, raters), nan where there is none."""
        table = np.full((len(self.items), len(raters)), np.nan)
        for i, item in enumerate(self.items):
            given = (item.model_labels if models else item.labels).get(dimension, {})
            for j, rater in enumerate(raters):
                table[i, j] = given.get(rater, np.nan)
        return table

    def first(self, count: int) -> LabelledSet:
        """Return the first `count` items alone."""
        return replace(self, items=self.items[:count])


def map_dimensions(
    scales: Mapping[str, Scale], default: Mapping[str, str], own: Mapping[str, str]
) -> tuple[Dimension, ...]:
    """Return the dimensions of `scales`, each with its perspective: of `own`, else of `default`.

    A perspective that begins with "-" takes the dimension turned over; "none" is no perspective.
    Raises `DataError` for a dimension in `own` that the data do not have.
    """
    unknown = sorted(own.keys() - scales.keys())
    if unknown:
        raise DataError(
            f"--map names the dimension {unknown[0]!r}, which the data do not have: they have "
            f"{', '.join(scales)}."
        )
    mapped = {name: own.get(name, default.get(name, "none")) for name in scales}
    return tuple(
        Dimension(
            name,
            scale,
            None if mapped[name] == "none" else mapped[name].removeprefix("-"),
            mapped[name].startswith("-"),
        )
        for name, scale in scales.items()
    )


def oriented(value: float, dimension: Dimension) -> float:
    """Return a label as it enters the set: mirrored on the scale where the dimension is turned."""
    return dimension.scale.low + dimension.scale.high - value if dimension.turned else value


def check_perspectives(dimensions: Sequence[Dimension], known: Collection[str]) -> None:
    """Raises `DataError` unless some dimension has a perspective, and each of them is in `known`."""
    for dimension in dimensions:
        if dimension.perspective is not None and dimension.perspective not in known:
            raise DataError(
                f"The dimension {dimension.name} is mapped to {dimension.perspective!r}, and the judges are "
                f"{', '.join(known)}: name one of them, or none, with --map {dimension.name}=PERSPECTIVE."
            )
    if not any(dimension.perspective for dimension in dimensions):
        names = ", ".join(dimension.name for dimension in dimensions)
        raise DataError(
            f"No dimension of the data ({names}) is mapped to a perspective: use --map DIMENSION=PERSPECTIVE."
        )
