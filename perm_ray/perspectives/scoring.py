"""A judge's answer becomes a reading: log-probabilities or text in, a score on the scale out.

Pure functions, called by a judge actor with what its engine answered. An answer that is not a score
raises `ScoreError`; the judge turns that into the status `unparseable`. It never becomes a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from perm_ray.perspectives.perspective import Scale


class ScoreError(ValueError):
    """The judge's answer holds no score: `reason` says why, `mass` what it gave to valid answers."""

    def __init__(self, reason: str, mass: float | None = None) -> None:
        super().__init__(reason, mass)  # both in args, so that it pickles whole
        self.reason = reason
        self.mass = mass

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class Reading:
    """A score, and what is known about it.

    `mass` is the probability the judge gave to valid answers, `distribution` its probabilities over
    the scale given that the answer was valid (lowest value first) and `entropy` theirs, in nats: those
    three belong to expected scores. `criteria` are the parts of a score that is a sum.
    """

    score: float
    mass: float | None = None
    distribution: tuple[float, ...] = ()
    entropy: float | None = None
    criteria: Mapping[str, float] = field(default_factory=dict)


def expected_score(logprobs: Mapping[int, float], scale: Scale, min_mass: float) -> Reading:
    """The mean of the scale's values under the judge's next-token distribution: sum s*p(s) / mass.

    `logprobs` are natural logarithms of the probabilities of the values of the scale, over the whole
    vocabulary. `mass = sum p(s)`: below `min_mass` the judge was about to say something else than a
    score, and what little it leaves to the digits is no opinion.
    """
    missing = [value for value in scale.values if value not in logprobs]
    if missing:
        raise ScoreError(f"the judge's engine gave no log-probability for {missing}")
    found = [logprobs[value] for value in scale.values]
    if any(math.isnan(logprob) or logprob > 1e-3 for logprob in found):
        raise ScoreError(f"log-probabilities must be at most 0, found {found}")
    probabilities = [math.exp(logprob) for logprob in found]
    mass = math.fsum(probabilities)
    if mass <= 0.0 or mass < min_mass:
        wanted = f"{scale.low} to {scale.high}"
        raise ScoreError(f"less than {min_mass} of the judge's answer is on {wanted}", mass)
    distribution = tuple(p / mass for p in probabilities)
    mean = math.fsum(value * p for value, p in zip(scale.values, distribution, strict=True))
    return Reading(
        score=min(max(mean, scale.low), scale.high),  # rounding may step over the edge by an ulp
        mass=min(mass, 1.0),
        distribution=distribution,
        entropy=-math.fsum(p * math.log(p) for p in distribution if p > 0.0),
    )


def criteria_regex(names: Sequence[str], scale: Scale) -> str:
    """The text that follows the answer prefix `answer_opening(names)`: each criterion's whole number.

    Plain alternations and no look-around, which every grammar backend understands; a label is plain
    letters, so nothing needs escaping. Longer numbers come first for engines that take the first match.
    """
    if not all(name.isascii() and name.isalpha() for name in names):
        raise ValueError(f"a criterion's name is plain letters, found {list(names)}")
    number = "(" + "|".join(str(value) for value in reversed(scale.values)) + ")"
    return number + "".join(f"\\n{_label(name)}: {number}" for name in names[1:])


def answer_opening(names: Sequence[str]) -> str:
    """How the judge's turn begins: the first criterion's label, up to where its number comes."""
    return f"{_label(names[0])}: "


def parse_criteria(text: str, names: Sequence[str], scale: Scale) -> dict[str, float]:
    """Each criterion's points from a constrained answer (without its answer prefix).

    Strict: exactly the expected lines in the expected order, each a number on the scale written the
    one way the regex allows. Anything else was not written under the constraint (or was cut off).
    """
    lines = (answer_opening(names) + text).rstrip("\n").split("\n")
    if len(lines) != len(names):
        raise ScoreError(f"expected {len(names)} lines, one for each criterion, found {len(lines)}")
    allowed = {str(value): float(value) for value in scale.values}
    points: dict[str, float] = {}
    for name, line in zip(names, lines, strict=True):
        label, _, number = line.partition(": ")
        if label != _label(name) or number not in allowed:
            expected = f"'{_label(name)}: <{scale.low} to {scale.high}>'"
            raise ScoreError(f"expected the line {expected}, found another")
        points[name] = allowed[number]
    return points


def criteria_score(text: str, names: Sequence[str], scale: Scale) -> Reading:
    """A score that is the sum of its criteria. The sum is ours: judges add badly."""
    points = parse_criteria(text, names, scale)
    return Reading(score=math.fsum(points.values()), criteria=points)


def _label(name: str) -> str:
    return name.capitalize()
