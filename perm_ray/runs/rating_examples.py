"""Turn ratings and preferences into sequences to learn from: the queries of scoring mode `expected`.

What is trained is what is asked: the same rubric, fence and opening, and the same tree of numbers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from perm_ray.config.judges import JudgesConfig
from perm_ray.data.items import Preference
from perm_ray.errors import DataError
from perm_ray.evaluation.calibration.labelled import Dimension, LabelledItem
from perm_ray.judges.asking import ScoreQuery
from perm_ray.judges.engine import ValueTree, render_query, value_tree
from perm_ray.judges.judge import question_of
from perm_ray.judges.modes import score_queries
from perm_ray.judges.perspective import Perspective
from perm_ray.models.chat import ChatRenderer
from perm_ray.runs.examples import Unit, check_lengths, sequence_of, sharing
from perm_ray.trainer.batching import TrainSequence
from perm_ray.types import Scale


def rating_units(
    items: Sequence[LabelledItem],
    dimensions: Sequence[Dimension],
    judges: JudgesConfig,
    perspectives: Mapping[str, Perspective],
    renderer: ChatRenderer,
    seed: str,
    max_tokens: int,
) -> list[Unit]:
    """Render each rated text as the very query that scoring mode `expected` makes of it.

    The target is the raters' distribution over the scale, right after the question's opening. A perspective
    with criteria learns them from the dimensions `<perspective>.<criterion>`: one is drawn for each text, so
    that the texts of a scenario share its beginning, and another epoch draws others.

    Args:
        items: The rated texts.
        dimensions: What people rated, and which perspective each belongs to.
        judges: The section `judges`.
        perspectives: Those that learn, by name.
        renderer: The judge's chat template and tokenizer.
        seed: Of the fences around texts, and of the criterion that is drawn.
        max_tokens: The longest query.

    Raises:
        DataError: Queries are too long; one error names the rows.
    """
    scales = {dimension.name: dimension.scale for dimension in dimensions}
    grouped: dict[tuple[str, str], list[tuple[str, TrainSequence]]] = {}
    openings: dict[tuple[str, tuple[int, ...]], _Opening] = {}  # equal for many texts
    for labelled in items:
        scenario = labelled.item.scenario
        for name, perspective in perspectives.items():
            text = getattr(labelled.item.sections, perspective.reads)
            rated = _rated_dimensions(labelled, dimensions, perspective)
            if text is None or not rated:
                continue
            question = question_of(perspective, judges.pools[name], scenario, text, seed)
            chat = render_query(renderer, question.messages, "")
            drawn = ""
            if question.criteria:
                drawn = random.Random(f"{seed}/{labelled.item.item_id}").choice(rated)
            for dimension, query in zip(rated, score_queries(question, question.opening), strict=True):
                ratings = list(labelled.labels.get(dimension, {}).values())
                if not ratings or (drawn and dimension != drawn):
                    continue
                key = query.prefix, query.values
                opening = openings.get(key) or openings.setdefault(key, _opening(renderer, query))
                unit = grouped.setdefault((name, scenario.scenario_id), [])
                target = soft_target(ratings, scales[dimension], question.scale)
                for sequence in target_sequences(chat + opening.token_ids, opening.tree, target, opening.end):
                    unit.append((labelled.item.item_id, sequence))
    units = [sharing([sequence for _, sequence in pairs]) for pairs in grouped.values()]
    check_lengths(units, [pairs[0][0] for pairs in grouped.values()], max_tokens)
    return units


@dataclass(frozen=True, slots=True)
class _Opening:
    """The tokens of a judge's opening, the tree of the numbers after it, and the token that ends a number."""

    token_ids: tuple[int, ...]
    tree: ValueTree
    end: int


def _opening(renderer: ChatRenderer, query: ScoreQuery) -> _Opening:
    end = renderer.encode(f"{query.prefix}{query.values[0]}\n")[-1]
    tree = value_tree(renderer, query.prefix, query.values)
    return _Opening(renderer.encode(query.prefix), tree, end)


def preference_units(
    pairs: Sequence[Preference],
    judges: JudgesConfig,
    perspectives: Mapping[str, Perspective],
    renderer: ChatRenderer,
    seed: str,
    max_tokens: int,
) -> list[Unit]:
    """Render both texts of each pair as the query of scoring mode `expected`; a unit is a pair.

    The candidates of the one trained position are the tokens of the scale's values, with their values.

    Raises:
        DataError: A perspective has no pool here, or a number of several tokens or criteria; or queries are
            too long.
    """
    units: list[Unit] = []
    for number, preference in enumerate(pairs, start=1):
        perspective = perspectives.get(preference.perspective)
        if perspective is None:
            raise DataError(
                f"Pair {number} prefers as {preference.perspective!r}, and the pools that are trained are "
                f"{', '.join(perspectives)}: name one of them as its perspective."
            )
        sides = []
        for sign, item in ((1, preference.better), (-1, preference.worse)):
            text = getattr(item.sections, perspective.reads)
            if text is None:
                raise DataError(f"Pair {number} has no {perspective.reads}, which {perspective.name} reads.")
            question = question_of(perspective, judges.pools[perspective.name], item.scenario, text, seed)
            tree = value_tree(renderer, question.opening, question.scale.values)
            if question.criteria or any(node.children for node in tree.children.values()):
                raise DataError(
                    f"{perspective.name} learns from ratings only, not from preferences: it has criteria, "
                    "or numbers of several tokens."
                )
            values = tuple((token, float(node.value or 0)) for token, node in tree.children.items())
            query = render_query(renderer, question.messages, question.opening)
            sides.append(
                replace(sequence_of(query, (values[0][0],), [0]), soft_targets=(values,), pair=sign * number)
            )
        units.append(sharing(sides))
    check_lengths(units, [f"pair {number}" for number in range(1, len(units) + 1)], max_tokens)
    return units


def _rated_dimensions(
    labelled: LabelledItem, dimensions: Sequence[Dimension], perspective: Perspective
) -> list[str]:
    """Return the dimension behind each number that the perspective asks for; none when it was not rated."""
    if perspective.criteria:
        names = [f"{perspective.name}.{criterion}" for criterion in perspective.criteria]
        return names if any(labelled.labels.get(name) for name in names) else []
    names = [d.name for d in dimensions if d.perspective == perspective.name and labelled.labels.get(d.name)]
    return names[:1]


def soft_target(ratings: Sequence[float], given: Scale, asked: Scale) -> dict[int, float]:
    """Return the raters' distribution over the asked scale, each rater with the same weight.

    A rating on another scale is moved linearly; one between two values counts for both, by its distance.
    """
    target: dict[int, float] = {}
    for rating in ratings:
        place = asked.low + (rating - given.low) / (given.high - given.low) * (asked.high - asked.low)
        below = math.floor(place)
        for value, share in ((below, below + 1 - place), (below + 1, place - below)):
            if share > 0:
                target[value] = target.get(value, 0.0) + share / len(ratings)
    return target


def target_sequences(
    prompt_ids: tuple[int, ...], tree: ValueTree, target: Mapping[int, float], end: int
) -> list[TrainSequence]:
    """Return sequences whose cross-entropy is that of `target` over the numbers of `tree`.

    -sum q(v) log p(v) is, over the tokens that numbers are written with, a sum over the tree's branches:
    each is a trained position whose candidates have the probability of the numbers behind them. Where a
    number ends and a longer one goes on, the candidate of ending is the token `end`.
    """
    branches: dict[tuple[int, ...], tuple[tuple[int, float], ...]] = {}
    for path, node in tree.branches():
        pairs = [(token, _reached(child, target)) for token, child in node.children.items()]
        if node.value is not None:
            pairs.append((end, target.get(node.value, 0.0)))
        candidates = tuple((token, q) for token, q in pairs if q > 0)
        if candidates:
            branches[path] = candidates
    sequences, covered = [], set()
    for path in sorted(branches, key=len, reverse=True):
        places = [n for n in range(len(path) + 1) if path[:n] in branches and path[:n] not in covered]
        if path in covered:
            continue
        covered |= {path[:n] for n in places}
        soft = tuple(branches[path[:n]] for n in places)
        last = (soft[-1][0][0],)  # nothing reads it
        sequences.append(replace(sequence_of(prompt_ids, path + last, places), soft_targets=soft))
    return sequences


def _reached(node: ValueTree, target: Mapping[int, float]) -> float:
    own = target.get(node.value, 0.0) if node.value is not None else 0.0
    return own + math.fsum(_reached(child, target) for child in node.children.values())
