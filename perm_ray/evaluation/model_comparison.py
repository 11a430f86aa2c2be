"""Compare models on the same scenarios: scores, reward, format, length and variety of their answers. Pure.

`perm-ray evaluate perm` and the learning benchmark end here. The first model is what the others are compared
with; differences are paired by scenario.
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
class Answer:
    """A model's answer to a scenario, as its judges see it.

    Args:
        scenario_id: The scenario that was answered.
        tags: Of the scenario, such as `language/pt-br`.
        scores: By perspective, on its scale; one that failed is absent.
        reward: None where the answer is masked.
        valid: Whether it has both sections.
        truncated: Whether it was cut off at the token limit.
        tokens: Its length.
        response: What the seeker reads; empty without that section.
    """

    scenario_id: str
    tags: Sequence[str]
    scores: Mapping[str, float]
    reward: float | None
    valid: bool
    truncated: bool
    tokens: int
    response: str

    def measures(self) -> dict[str, float]:
        """Return everything of it that is a number, by name."""
        rewarded = {} if self.reward is None else {"reward": self.reward}
        shape = {
            "format": float(self.valid),
            "truncated": float(self.truncated),
            "tokens": float(self.tokens),
        }
        return rewarded | dict(self.scores) | shape


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model. `differences` are from the first model, which has none; `slices` are means by tag."""

    model: str
    num_answers: int
    means: Mapping[str, float]
    differences: Mapping[str, Difference] = field(default_factory=dict)
    slices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def compare_models(answers: Mapping[str, Sequence[Answer]], seed: int) -> list[ModelFigures]:
    """Return each model's figures, in order.

    Args:
        answers: By model. A scenario may have several answers, whose mean is compared.
        seed: Of the bootstrap.
    """
    first: Mapping[str, Mapping[str, float]] = {}
    found = []
    for model, given in answers.items():
        by_scenario = _by_scenario(given)
        differences = {}
        for name, after in by_scenario.items():
            before = first.get(name, {})
            shared = [scenario for scenario in before if scenario in after]
            if len(shared) >= 2:
                values = [before[s] for s in shared], [after[s] for s in shared]
                differences[name] = paired_difference(*values, seed=seed)
        first = first or by_scenario
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


def _means(answers: Sequence[Answer]) -> dict[str, float]:
    values: defaultdict[str, list[float]] = defaultdict(list)
    for answer in answers:
        for name, value in answer.measures().items():
            values[name].append(value)
    responses = [answer.response for answer in answers]
    variety = {"distinct_1": distinct_n(responses, 1), "distinct_2": distinct_n(responses, 2)}
    return {name: fmean(each) for name, each in values.items()} | variety


def _by_scenario(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Return the mean of each measure for each scenario."""
    values: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        for name, value in answer.measures().items():
            values[name][answer.scenario_id].append(value)
    return {name: {s: fmean(each) for s, each in by.items()} for name, by in values.items()}


def _slices(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    tagged: defaultdict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        for tag in answer.tags:
            tagged[tag].append(answer)
    return {tag: _means(own) | {"answers": float(len(own))} for tag, own in sorted(tagged.items())}
