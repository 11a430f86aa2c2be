"""Probabilities become a reading: a score on the scale, and how sure the judge was of it.

Pure functions, called by the scoring modes. An answer that is not a score raises `ScoreError`; the
judge turns that into the status `unparseable`. It never becomes a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from perm_ray.types import Scale


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
    """A score, and what is known about it; the fields are those of `types.Judgment`."""

    score: float
    sampled: float | None = None
    mass: float | None = None
    distribution: tuple[float, ...] = ()
    entropy: float | None = None
    spread: float | None = None
    criteria: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


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
    return _reading(tuple(p / mass for p in probabilities), scale, min(mass, 1.0))


def sum_of_criteria(readings: Mapping[str, Reading]) -> Reading:
    """The score that is the sum of its criteria's expectations. The sum is ours: judges add badly.

    The criteria were asked side by side, so the sum's distribution is the convolution of theirs.
    `mass` is that of the least sure criterion.
    """
    total = (1.0,)
    for reading in readings.values():
        total = _convolve(total, reading.distribution)
    return Reading(
        score=math.fsum(reading.score for reading in readings.values()),
        sampled=math.fsum(reading.sampled or 0.0 for reading in readings.values()),
        mass=min(reading.mass or 0.0 for reading in readings.values()),
        distribution=total,
        entropy=entropy(total),
        criteria={name: reading.score for name, reading in readings.items()},
    )


def entropy(distribution: Sequence[float]) -> float:
    """-sum p ln p, in nats."""
    return -math.fsum(p * math.log(p) for p in distribution if p > 0.0)


def _reading(distribution: tuple[float, ...], scale: Scale, mass: float) -> Reading:
    mean = math.fsum(value * p for value, p in zip(scale.values, distribution, strict=True))
    return Reading(
        score=min(max(mean, scale.low), scale.high),  # rounding may step over the edge by an ulp
        sampled=float(scale.low + distribution.index(max(distribution))),
        mass=mass,
        distribution=distribution,
        entropy=entropy(distribution),
    )


def _convolve(left: Sequence[float], right: Sequence[float]) -> tuple[float, ...]:
    result = [0.0] * (len(left) + len(right) - 1)
    for i, p in enumerate(left):
        for j, q in enumerate(right):
            result[i + j] += p * q
    return tuple(result)


def number_regex(scale: Scale) -> str:
    """Each number of the scale. Longer ones come first for engines that take the first match; plain
    alternations and no look-around, which every grammar backend understands."""
    return "(" + "|".join(str(value) for value in reversed(scale.values)) + ")"


def criteria_regex(names: Sequence[str], scale: Scale) -> str:
    """The text that follows the first criterion's label: its number, then a line for each of the others."""
    number = number_regex(scale)
    return number + "".join(f"\\n{label}{number}" for label in criteria_lines(names)[1:])


def criteria_lines(names: Sequence[str]) -> list[str]:
    """How each criterion's line begins, up to where its number comes."""
    if not all(name.isascii() and name.isalpha() for name in names):
        raise ValueError(f"a criterion's name is plain letters, found {list(names)}")
    return [f"{name.capitalize()}: " for name in names]
