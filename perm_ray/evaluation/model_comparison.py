"""Compare models on the same items: the mean of each measure, and paired differences. Pure.

Every `perm-ray evaluate` and the learning benchmark end here. The first model is what the others are compared
with; differences are paired by item.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from perm_ray.evaluation.bootstrap import Difference, paired_difference

_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w+")  # a character of Chinese or Japanese is a word


@dataclass(frozen=True, slots=True)
class Measured:
    """Hold what is a number of a model's answer to one item of an evaluation.

    Args:
        item_id: The scenario, or the question; several answers to one are compared by their mean.
        tags: Of the item, such as `language/pt-br`.
        measures: By name; one that could not be measured is absent.
        text: What variety is counted in; None where there is no such text.
    """

    item_id: str
    tags: Sequence[str]
    measures: Mapping[str, float]
    text: str | None = None


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model. `differences` are from the first model, which has none; `slices` are means by tag."""

    model: str
    num_answers: int
    means: Mapping[str, float]
    differences: Mapping[str, Difference] = field(default_factory=dict)
    slices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def compare_models(answers: Mapping[str, Sequence[Measured]], seed: int) -> list[ModelFigures]:
    """Return each model's figures, in order.

    Args:
        answers: By model. An item may have several answers, whose mean is compared.
        seed: Of the bootstrap.
    """
    first: Mapping[str, Mapping[str, float]] = {}
    found = []
    for model, given in answers.items():
        by_item = _by_item(given)
        differences = {}
        for name, after in by_item.items():
            before = first.get(name, {})
            shared = [scenario for scenario in before if scenario in after]
            if len(shared) >= 2:
                values = [before[s] for s in shared], [after[s] for s in shared]
                differences[name] = paired_difference(*values, seed=seed)
        first = first or by_item
        found.append(ModelFigures(model, len(given), _means(given), differences, _slices(given)))
    return found


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return the share of different n-grams among all n-grams of words (Li et al., arXiv 1510.03055).

    A policy that says the same to everybody has a low one. It falls with the number of words: compare equal
    numbers of texts. 0 where there is no n-gram.
    """
    grams = []
    for text in texts:
        words = _WORDS.findall(text.lower())
        grams += [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _means(answers: Sequence[Measured]) -> dict[str, float]:
    values: defaultdict[str, list[float]] = defaultdict(list)
    for answer in answers:
        for name, value in answer.measures.items():
            values[name].append(value)
    means = {name: fmean(each) for name, each in values.items()}
    texts = [answer.text for answer in answers if answer.text is not None]
    return means | ({f"distinct_{n}": distinct_n(texts, n) for n in (1, 2)} if texts else {})


def _by_item(answers: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Return the mean of each measure for each item."""
    values: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        for name, value in answer.measures.items():
            values[name][answer.item_id].append(value)
    return {name: {s: fmean(each) for s, each in by.items()} for name, by in values.items()}


def _slices(answers: Sequence[Measured]) -> dict[str, dict[str, float]]:
    tagged: defaultdict[str, list[Measured]] = defaultdict(list)
    for answer in answers:
        for tag in answer.tags:
            tagged[tag].append(answer)
    return {tag: _means(own) | {"answers": float(len(own))} for tag, own in sorted(tagged.items())}
