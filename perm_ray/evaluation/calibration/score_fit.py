"""Fits the map that `rewards/score_map.py` applies: isotonic regression of people on a judge's scores.

Isotonic regression keeps the judge's order and changes its scale alone (R. Barlow et al., Statistical
Inference under Order Restrictions, 1972). A map always looks good on the items it was fitted on, so
what it is worth is measured by cross-validation, and beside it what the plain mean of people is worth:
a map that does no better than the mean has learned nothing from the judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perm_ray.errors import DataError
from perm_ray.evaluation.calibration.agreement import mean_of_raters, on_scale
from perm_ray.evaluation.calibration.figures import CalibrationReport, Judgments, judged_on
from perm_ray.evaluation.calibration.labelled import LabelledSet
from perm_ray.evaluation.calibration.resampling import Array
from perm_ray.rewards.score_map import ScoreMap
from perm_ray.types import Scale

if TYPE_CHECKING:
    from sklearn.isotonic import IsotonicRegression

FOLDS = 5
MIN_ITEMS = 20  # four a fold: with fewer, neither the map nor its error means anything


def fit_score_maps(
    labelled: LabelledSet,
    judgments: Judgments,
    report: CalibrationReport,
    scales: Mapping[str, Scale],
    seed: int,
) -> dict[str, ScoreMap]:
    """Return a map for each perspective that some dimension is held against.

    What people gave is the mean of the perspective's dimensions, each put on its scale. Raises
    `DataError` when a perspective has too few items with both.
    """
    maps = {}
    for name, scale in scales.items():
        own = [dimension for dimension in labelled.dimensions if dimension.perspective == name]
        if not own:
            continue
        people = mean_of_raters(
            np.column_stack(
                [
                    on_scale(
                        mean_of_raters(labelled.ratings(each.name, labelled.raters(each.name))),
                        each.scale,
                        scale,
                    )
                    for each in own
                ]
            )
        )
        judged = judged_on(labelled, judgments, name, scale, scale)
        both = ~(np.isnan(people) | np.isnan(judged))
        if both.sum() < MIN_ITEMS:
            raise DataError(
                f"A score map of {name} needs {MIN_ITEMS} items with a rating and a judgment, found "
                f"{int(both.sum())}: label more, or leave out --fit-map."
            )
        queries = [
            item.item.scenario.scenario_id for item, kept in zip(labelled.items, both, strict=True) if kept
        ]
        identity = report.judges[name]
        scores, mapped = fit(judged[both], people[both], scale)
        maps[name] = ScoreMap(
            judge=identity.model,
            mode=identity.mode,
            rubric_digests=identity.rubric_digests,
            scale=(scale.low, scale.high),
            n=int(both.sum()),
            scores=scores,
            mapped=mapped,
            error=cross_validated(judged[both], people[both], queries, scale, seed),
        )
    return maps


def fit(judged: Array, people: Array, scale: Scale) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the corners of the map: judge's scores, strictly increasing, and what they are worth."""
    fitted = _isotonic(judged, people, scale)
    scores, mapped = fitted.X_thresholds_, fitted.y_thresholds_
    return tuple(map(float, scores)), tuple(map(float, np.clip(mapped, scale.low, scale.high)))


def cross_validated(
    judged: Array, people: Array, queries: Sequence[str], scale: Scale, seed: int
) -> dict[str, float]:
    """Mean absolute errors against people, on the scale, of items that were held out of fitting.

    `before`: of the judge's own scores. `after`: of mapped ones. `mean`: of the mean of people, whatever
    the judge says. Replies to the same query stay together, in or out.
    """
    from sklearn.model_selection import GroupKFold

    folds = min(FOLDS, len(set(queries)))
    if folds < 2:
        return {"before": float(np.abs(judged - people).mean())}
    predicted, mean = np.empty_like(people), np.empty_like(people)
    splits = GroupKFold(folds, shuffle=True, random_state=seed).split(judged, groups=queries)
    for fitting, held in splits:
        predicted[held] = _isotonic(judged[fitting], people[fitting], scale).predict(judged[held])
        mean[held] = people[fitting].mean()
    return {
        "before": float(np.abs(judged - people).mean()),
        "after": float(np.abs(predicted - people).mean()),
        "mean": float(np.abs(mean - people).mean()),
    }


def _isotonic(judged: Array, people: Array, scale: Scale) -> IsotonicRegression:
    from sklearn.isotonic import IsotonicRegression

    regression = IsotonicRegression(y_min=scale.low, y_max=scale.high, increasing=True, out_of_bounds="clip")
    return regression.fit(judged, people)
