"""Score test items: choices by log-probability, answers by rules. Pure; no judge is asked.

Models prefer some positions in a list whatever stands there, so a question is asked once for each rotation of
its choices, and a choice's probability is the mean over them (Zheng et al., arXiv 2309.03882).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from perm_ray.data.benchmark_items import BenchmarkItem
from perm_ray.evaluation.model_comparison import Measured
from perm_ray.judges.asking import Answer, Query, QueryFailed, ScoreAnswer, ScoreQuery, TextAnswer, TextQuery
from perm_ray.types import Message

ANSWER_TOKENS = 160  # of an answer that rules decide about
_OPENING = "Number: "


def queries_of(item: BenchmarkItem) -> list[Query]:
    """Return what a model is asked: the number of the right choice in each rotation, or for an answer."""
    if not item.choices:
        return [TextQuery((Message("user", item.question),), "", ANSWER_TOKENS)]
    count = len(item.choices)
    found: list[Query] = []
    for shift in range(count):
        shown = [f"{place + 1}. {item.choices[(place + shift) % count]}" for place in range(count)]
        text = "\n".join([item.question, *shown])
        found.append(ScoreQuery((Message("user", text),), _OPENING, tuple(range(1, count + 1))))
    return found


def item_row(item: BenchmarkItem, answers: Sequence[Answer]) -> dict[str, object]:
    """Return what is kept of an item: whether it is `right` (null when it got no answer), and by what.

    `probabilities` are those of the choices, among themselves; `answer` is what the model wrote.
    """
    row: dict[str, object] = {"id": item.item_id, "part": item.part, "right": None}
    failed = next((each for each in answers if isinstance(each, QueryFailed)), None)
    if failed is not None:
        return row | {"failed": str(failed)}
    if not item.choices:
        (answer,) = answers
        text = answer.text if isinstance(answer, TextAnswer) else ""
        return row | {"right": item.keeps_rules(text), "answer": text}
    shares = _probabilities([answer for answer in answers if isinstance(answer, ScoreAnswer)])
    if shares is None:
        return row | {"failed": "no choice has a probability that can be seen"}
    best = max(shares)
    return row | {"right": shares[item.answer] == best and shares.count(best) == 1, "probabilities": shares}


def measured(items: Sequence[BenchmarkItem], rows: Sequence[Mapping[str, object]]) -> list[Measured]:
    """Join the parts of each item: 1 for a right part and 0 for a wrong one, and the item's as the least.

    A part that got no answer counts as wrong, and as `unanswered`.
    """
    found = {(str(row["id"]), str(row["part"])): row for row in rows}
    by_item: defaultdict[str, list[BenchmarkItem]] = defaultdict(list)
    for item in items:
        by_item[item.item_id].append(item)
    result = []
    for name, parts in by_item.items():
        own = [found[name, part.part] for part in parts]
        right = [float(row["right"] is True) for row in own]
        measures = dict(zip((part.part for part in parts), right, strict=True))
        unanswered = fmean(float(row["right"] is None) for row in own)
        measures |= {parts[0].whole: min(right), "unanswered": unanswered}
        result.append(Measured(name, parts[0].tags, measures))
    return result


def chance_levels(items: Sequence[BenchmarkItem]) -> dict[str, float]:
    """Return what guessing gives, by measure."""
    levels: defaultdict[str, list[float]] = defaultdict(list)
    wholes: dict[tuple[str, str], float] = {}
    for item in items:
        levels[item.part].append(item.chance)
        key = item.whole, item.item_id
        wholes[key] = wholes.get(key, 1.0) * item.chance
    for (whole, _), chance in wholes.items():
        if whole not in {item.part for item in items}:
            levels[whole].append(chance)
    return {name: fmean(values) for name, values in levels.items()}


def _probabilities(answers: Sequence[ScoreAnswer]) -> list[float] | None:
    """Return each choice's probability among the choices, the mean over the rotations that show one."""
    count = len(answers)
    total = [0.0] * count
    seen = 0
    for shift, answer in enumerate(answers):
        likely = [math.exp(answer.logprobs[place + 1]) for place in range(count)]
        if sum(likely) > 0:
            seen += 1
            for place, value in enumerate(likely):
                total[(place + shift) % count] += value / sum(likely)
    return [value / seen for value in total] if seen else None
