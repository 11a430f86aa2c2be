"""Turn probabilities into a score on the scale, and into how sure the judge was of it.

Pure functions, called by the scoring modes. An answer that is not a score raises `ScoreError`; the
judge turns that into the status `unparseable`. It never becomes a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from perm_ray.types import Judgment, Scale, Status


class ScoreError(ValueError):
    """The judge's answer holds no score: `reason` says why, `mass` what it gave to valid answers."""

    def __init__(self, reason: str, mass: float | None = None) -> None:
        super().__init__(reason, mass)  # both in args, so that it pickles whole
        self.reason = reason
        self.mass = mass

    def __str__(self) -> str:
        return self.reason


def scored(score: float, **fields: Any) -> Judgment:
    """Return a judgment with a score; the judge adds whose it is and what it cost."""
    return Judgment(perspective="", status=Status.OK, score=score, **fields)


def expected_score(logprobs: Mapping[int, float], scale: Scale, min_mass: float) -> Judgment:
    """Return the mean of the scale's values under the judge's next-token distribution: sum s*p(s) / mass.

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
    return _expectation(tuple(p / mass for p in probabilities), scale, min(mass, 1.0))


def sum_of_criteria(judgments: Mapping[str, Judgment]) -> Judgment:
    """Return the score that is the sum of its criteria's expectations. The sum is ours: judges add badly.

    The criteria were asked side by side, so the sum's distribution is the convolution of theirs.
    `mass` is that of the least sure criterion.
    """
    total = (1.0,)
    for judgment in judgments.values():
        total = _convolve(total, judgment.distribution)
    return scored(
        score=math.fsum(judgment.score or 0.0 for judgment in judgments.values()),
        sampled=math.fsum(judgment.sampled or 0.0 for judgment in judgments.values()),
        mass=min(judgment.mass or 0.0 for judgment in judgments.values()),
        distribution=total,
        entropy=entropy(total),
        criteria={name: judgment.score for name, judgment in judgments.items()},
    )


def entropy(distribution: Sequence[float]) -> float:
    """-sum p ln p, in nats."""
    return -math.fsum(p * math.log(p) for p in distribution if p > 0.0)


def _expectation(distribution: tuple[float, ...], scale: Scale, mass: float) -> Judgment:
    mean = math.fsum(value * p for value, p in zip(scale.values, distribution, strict=True))
    return scored(
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
    """Return each number of the scale. Longer ones come first for engines that take the first match; plain
    alternations and no look-around, which every grammar backend understands."""
    return "(" + "|".join(str(value) for value in reversed(scale.values)) + ")"


def criteria_regex(names: Sequence[str], scale: Scale) -> str:
    """Return the text that follows the first criterion's label: its number, then a line for each of the
    others."""
    number = number_regex(scale)
    return number + "".join(f"\\n{label}{number}" for label in criteria_lines(names)[1:])


def criteria_lines(names: Sequence[str]) -> list[str]:
    """Return how each criterion's line begins, up to where its number comes."""
    if not all(name.isascii() and name.isalpha() for name in names):
        raise ValueError(f"a criterion's name is plain letters, found {list(names)}")
    return [f"{name.capitalize()}: " for name in names]
