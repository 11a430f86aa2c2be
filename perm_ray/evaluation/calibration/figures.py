"""Does a judge agree with people, and as well as people agree with each other? Pure.

`calibrate` takes replies that people have rated (`labels.py`) and what the judges said of them, and
returns a report by dimension: the judge against the mean of all people and against each of them, people
among themselves (the line to beat), models that rated the same, and the same by language and culture.
Everything is on the dimension's own scale: a judge's score is put there linearly.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from perm_ray.evaluation.calibration.agreement import (
    Bootstrap,
    Confusion,
    Figure,
    agreement,
    confusion,
    human_line,
    judge_margin,
    mean_of_raters,
    on_scale,
    rater_alpha,
)
from perm_ray.evaluation.calibration.labelled import Dimension, LabelledItem, LabelledSet
from perm_ray.evaluation.calibration.resampling import Array
from perm_ray.types import Judgment, Scale, Status

Figures = Mapping[str, Figure]
Mask = NDArray[np.bool_]
Judgments = Mapping[str, Mapping[str, Judgment]]  # by item and perspective

MAX_DISAGREEMENTS = 10  # a dimension's, listed for people to read


@dataclass(frozen=True, slots=True)
class JudgeIdentity:
    """The judge of a perspective: model, scoring mode and the digests of the rubrics (one a language)."""

    model: str
    mode: str
    rubric_digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PeopleReport:
    """People among themselves: each pair, each against the mean of the others, and on average."""

    raters: tuple[str, ...]
    alpha: Figure
    pairs: Mapping[str, Figures]
    against_others: Mapping[str, Figures]
    line: Figures


@dataclass(frozen=True, slots=True)
class SliceReport:
    """The judge against people on the items with one tag."""

    coverage: Mapping[str, int]
    figures: Figures


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An item that the judge and people see differently; scores are on the dimension's scale."""

    item: LabelledItem
    judged: float
    people: float
    reason: str


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """The judge on one dimension. `coverage` counts the rated items by what became of their judgment.

    `points` are (judge's score, mean of people) of each item, both on the dimension's scale. `margin`
    is how much better than a person the judge agrees with the other people (see `judge_margin`).
    """

    coverage: Mapping[str, int]
    figures: Figures
    by_rater: Mapping[str, Figures]
    margin: Figures
    confusion: Confusion
    slices: Mapping[str, SliceReport]
    points: tuple[tuple[float, float], ...]
    disagreements: tuple[Disagreement, ...]


@dataclass(frozen=True, slots=True)
class DimensionReport:
    """One dimension; `judge` is None where no perspective is held against it. `n` items are rated."""

    dimension: Dimension
    n: int
    people: PeopleReport
    models: Mapping[str, Figures]
    judge: JudgeReport | None


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """The result of `perm-ray judge calibrate`."""

    source: str
    num_items: int
    judges: Mapping[str, JudgeIdentity]
    dimensions: tuple[DimensionReport, ...]
    bootstrap: Bootstrap = field(default_factory=Bootstrap)


def calibrate(
    labelled: LabelledSet,
    judgments: Judgments,
    scales: Mapping[str, Scale],
    modes: Mapping[str, str],
    bootstrap: Bootstrap,
) -> CalibrationReport:
    """Return the report. `scales` and `modes` are those of the judges' perspectives.

    `judgments` has one judgment per perspective for every item of `labelled`.
    """
    return CalibrationReport(
        source=labelled.source,
        num_items=len(labelled.items),
        judges={name: judge_identity(judgments, name, modes[name]) for name in scales},
        dimensions=tuple(
            _dimension_report(labelled, dimension, judgments, scales, bootstrap)
            for dimension in labelled.dimensions
        ),
        bootstrap=bootstrap,
    )


def judge_identity(judgments: Judgments, perspective: str, mode: str) -> JudgeIdentity:
    """Return who judged `perspective`, as its ok judgments say."""
    ok = [j for by_name in judgments.values() if (j := by_name[perspective]).status == Status.OK]
    models, digests = sorted({j.judge for j in ok}), sorted({j.rubric_digest for j in ok})
    return JudgeIdentity(", ".join(models), mode, tuple(digests))


def judged_on(
    labelled: LabelledSet, judgments: Judgments, perspective: str, scale: Scale, target: Scale
) -> Array:
    """Return a perspective's scores at their place on `target`, shape (items,); nan where there is none."""
    scores = [judgments[item.item.item_id][perspective].score for item in labelled.items]
    return on_scale(np.array([np.nan if s is None else s for s in scores], dtype=float), scale, target)


def metrics(report: CalibrationReport) -> Iterator[tuple[str, float]]:
    """Yield the figures as flat names and numbers, for a tracker: `calibration/<dimension>/judge/kappa`."""
    for entry in report.dimensions:
        people = {"line": entry.people.line, "people": {"alpha": entry.people.alpha}}
        judge = {"judge": entry.judge.figures, "margin": entry.judge.margin} if entry.judge else {}
        for side, figures in {**judge, **people}.items():
            for name, figure in figures.items():
                if figure.value is not None:
                    yield f"calibration/{entry.dimension.name}/{side}/{name}", figure.value
        for status, count in entry.judge.coverage.items() if entry.judge else ():
            yield f"calibration/{entry.dimension.name}/{status}", float(count)


# ---- one dimension ---------------------------------------------------------------------------------


def _dimension_report(
    labelled: LabelledSet,
    dimension: Dimension,
    judgments: Judgments,
    scales: Mapping[str, Scale],
    bootstrap: Bootstrap,
) -> DimensionReport:
    name, scale = dimension.name, dimension.scale
    raters, model_raters = labelled.raters(name), labelled.raters(name, models=True)
    ratings = labelled.ratings(name, raters)
    consensus = mean_of_raters(ratings)
    models = labelled.ratings(name, model_raters, models=True)
    judge = None
    if dimension.perspective is not None:
        judged = judged_on(labelled, judgments, dimension.perspective, scales[dimension.perspective], scale)
        judge = _judge_report(labelled, dimension, judgments, judged, ratings, bootstrap)
    return DimensionReport(
        dimension=dimension,
        n=int((~np.isnan(consensus)).sum()),
        people=_people_report(raters, ratings, scale, bootstrap),
        models={
            rater: agreement(models[:, i], consensus, scale, bootstrap)
            for i, rater in enumerate(model_raters)
        },
        judge=judge,
    )


def _people_report(
    raters: tuple[str, ...], ratings: Array, scale: Scale, bootstrap: Bootstrap
) -> PeopleReport:
    pairs = itertools.combinations(range(len(raters)), 2)
    others = {i: mean_of_raters(np.delete(ratings, i, axis=1)) for i in range(len(raters))}
    return PeopleReport(
        raters=raters,
        alpha=rater_alpha(ratings, scale, bootstrap),
        pairs={
            f"{raters[i]} and {raters[j]}": agreement(ratings[:, i], ratings[:, j], scale, bootstrap)
            for i, j in pairs
        },
        against_others={
            raters[i]: agreement(ratings[:, i], others[i], scale, bootstrap)
            for i in range(len(raters))
            if len(raters) > 1
        },
        line=human_line(ratings, scale, bootstrap),
    )


def _judge_report(
    labelled: LabelledSet,
    dimension: Dimension,
    judgments: Judgments,
    judged: Array,
    ratings: Array,
    bootstrap: Bootstrap,
) -> JudgeReport:
    scale, consensus = dimension.scale, mean_of_raters(ratings)
    rated = ~np.isnan(consensus)
    own = [judgments[item.item.item_id][str(dimension.perspective)] for item in labelled.items]
    both = np.flatnonzero(rated & ~np.isnan(judged))
    furthest = sorted(both, key=lambda i: -abs(judged[i] - consensus[i]))[:MAX_DISAGREEMENTS]

    def sliced(tag: Mask) -> SliceReport:
        figures = agreement(judged[tag], consensus[tag], scale, bootstrap)
        return SliceReport(_coverage(own, rated & tag), figures)

    return JudgeReport(
        coverage=_coverage(own, rated),
        figures=agreement(judged, consensus, scale, bootstrap),
        by_rater={
            rater: agreement(judged, ratings[:, i], scale, bootstrap)
            for i, rater in enumerate(labelled.raters(dimension.name))
        },
        margin=judge_margin(judged, ratings, scale, bootstrap),
        confusion=confusion(consensus, judged, scale),
        slices={name: sliced(tag) for name, tag in _tags(labelled).items()},
        points=tuple((float(judged[i]), float(consensus[i])) for i in both),
        disagreements=tuple(
            Disagreement(labelled.items[i], float(judged[i]), float(consensus[i]), own[i].reason)
            for i in furthest
        ),
    )


def _coverage(judgments: Sequence[Judgment], rated: Mask) -> dict[str, int]:
    counts = Counter(str(j.status) for j, here in zip(judgments, rated, strict=True) if here)
    return {str(status): counts[str(status)] for status in Status}


def _tags(labelled: LabelledSet) -> dict[str, Mask]:
    """Return the items of each language and culture, as masks; none where all have the same or none."""
    tags: dict[str, Mask] = {}
    for kind in ("language", "culture"):
        values = [getattr(item.item.scenario, kind) or "" for item in labelled.items]
        named = sorted(set(values) - {""})
        if len(set(values)) > 1:
            tags |= {f"{kind} {name}": np.array([value == name for value in values]) for name in named}
    return tags
