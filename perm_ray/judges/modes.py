"""Put a question to a judge in one of three scoring modes, and read a score out of its answers.

    expected   the probabilities of the numbers right after a fixed opening; one token, no words
    reasoned   a reason of bounded length first, then the probabilities of the numbers
    sampled    several answers, their mean and their spread

A mode is a generator: it yields queries, is sent their answers (same order) and returns a `Judgment`; or
it raises `ScoreError` (the judge answered, but not with a score) or `QueryFailed` (there was no
answer). It does not know who answers. A judge actor advances the modes of many questions together,
so that each round is one batch for the engine.

`begin` picks the mode. An engine that supports prefill can go on from a given beginning of the judge's turn
and tell the probabilities of numbers (in-cluster vLLM); the others are asked in a chat and answer in words.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import TypeVar

from perm_ray.config.judges import ScoringConfig
from perm_ray.data.prompts import without_thoughts
from perm_ray.judges.asking import (
    Answer,
    Query,
    QueryFailed,
    Question,
    ScoreAnswer,
    ScoreQuery,
    TextAnswer,
    TextQuery,
)
from perm_ray.judges.parsing import parse_criteria_text, parse_score
from perm_ray.judges.scoring import (
    ScoreError,
    criteria_lines,
    criteria_regex,
    entropy,
    expected_score,
    number_regex,
    scored,
    sum_of_criteria,
)
from perm_ray.types import Judgment, Message, Scale

Steps = Generator[Sequence[Query], Sequence[Answer], Judgment]

FORM_TOKENS = 8  # what an answer in words may have around its lines
_REASON = "Reason: "
_REASON_REGEX = r"[^\n]{12,}"  # one line; where it ends is the judge's choice or the token limit's
_A = TypeVar("_A", ScoreAnswer, TextAnswer)


def begin(question: Question, scoring: ScoringConfig, *, supports_prefill: bool, seed: int = 0) -> Steps:
    """Return the generator of `scoring.mode` for `question`; `seed` makes its samples repeatable."""
    if scoring.mode == "expected":
        return expected(question, scoring)
    if scoring.mode == "sampled":
        return sampled(question, scoring, supports_prefill, seed)
    return reasoned(question, scoring) if supports_prefill else written(question, scoring, seed)


def expected(question: Question, scoring: ScoringConfig) -> Steps:
    """Expectation over the judge's own probabilities, right after the question's opening."""
    answers = yield score_queries(question, question.opening)
    return _expectation(question, answers, scoring.min_mass)


def reasoned(question: Question, scoring: ScoringConfig) -> Steps:
    """Return a reason in the judge's words, then the expectation given that reason."""
    ask = TextQuery(question.messages, _REASON, scoring.max_reason_tokens, regex=_REASON_REGEX)
    reason = _only(TextAnswer, (yield [ask])).text.strip()
    answers = yield score_queries(question, f"{_REASON}{reason}\n\n{question.opening}")
    return replace(_expectation(question, answers, scoring.min_mass), reason=reason)


def sampled(question: Question, scoring: ScoringConfig, supports_prefill: bool, seed: int) -> Steps:
    """Return the mean of several sampled answers and their standard deviation.

    Samples that are no score are left out: `mass` is the share that is one.
    """
    ask = _number_ask(question) if supports_prefill else _chat_ask(question, scoring, with_reason=False)
    asks = [
        replace(ask, temperature=scoring.temperature, seed=seed + sample)
        for sample in range(scoring.num_samples)
    ]
    answers = yield asks
    texts = [answer for answer in answers if isinstance(answer, TextAnswer)]
    if not texts:
        raise _first_failure(answers)
    readings: list[Judgment] = []
    why = ""
    for text in texts:
        try:
            readings.append(_read_text(question, text, supports_prefill))
        except ScoreError as error:
            why = error.reason
    mass = len(readings) / len(answers)
    if not readings or mass < scoring.min_mass:
        raise ScoreError(f"{len(readings)} of {len(answers)} samples hold a score: {why}", mass)
    return _mean_reading(readings, question.score_scale, mass)


def written(question: Question, scoring: ScoringConfig, seed: int) -> Steps:
    """Return one answer in words, a reason and a score, read by the strict parser."""
    ask = replace(_chat_ask(question, scoring, with_reason=True), seed=seed)
    answer = _only(TextAnswer, (yield [ask]))
    judgment = _read_text(question, answer, supports_prefill=False)
    return replace(judgment, reason=answer.text.strip())


def answer_tokens(question: Question, scoring: ScoringConfig) -> int:
    """Return the room that the judge's turn needs after the question's opening, at most."""
    reason = scoring.max_reason_tokens + FORM_TOKENS if scoring.mode == "reasoned" else 0
    return reason + _longest_answer(question, criteria_lines(question.criteria))


def _longest_answer(question: Question, labels: Sequence[str]) -> int:
    """Return a bound on the tokens of the numbers and their labels: a token is a character at least."""
    number = len(str(question.scale.high)) + 1  # and the end of its line
    return sum(len(label) + number for label in labels or [""])


# ---- asks ------------------------------------------------------------------------------------


def score_queries(question: Question, opening: str) -> list[ScoreQuery]:
    """Return one ask for a score; for criteria one each, put side by side so that no number pulls at the
    next."""
    prefixes = [f"{opening}{label}" for label in criteria_lines(question.criteria)] or [opening]
    return [ScoreQuery(question.messages, prefix, question.scale.values) for prefix in prefixes]


def _number_ask(question: Question) -> TextQuery:
    """Have the numbers written after the opening, under a regular expression."""
    if not question.criteria:
        room = _longest_answer(question, [])
        return TextQuery(question.messages, question.opening, room, number_regex(question.scale))
    labels = criteria_lines(question.criteria)
    room = _longest_answer(question, labels)
    regex = criteria_regex(question.criteria, question.scale)
    return TextQuery(question.messages, question.opening + labels[0], room, regex)


def _chat_ask(question: Question, scoring: ScoringConfig, with_reason: bool) -> TextQuery:
    """Query in words for an answer in a form: for engines that cannot continue a given beginning."""
    low, high = question.scale.low, question.scale.high
    number = f"<whole number, {low} to {high}>"
    labels = criteria_lines(question.criteria) or ["Score: "]
    form = [f"{_REASON}<one or two sentences>"] if with_reason else []
    form += [f"{label}{number}" for label in labels]
    *before, last = question.messages
    request = "Answer in this form and write nothing else:\n" + "\n".join(form)
    messages = (*before, Message(last.role, f"{last.content}\n\n{request}"))
    values = "|".join(map(str, reversed(question.scale.values)))
    lines = [f"{label}({values})" for label in labels]
    return TextQuery(
        messages,
        prefix="",
        max_tokens=_longest_answer(question, labels)
        + FORM_TOKENS
        + (scoring.max_reason_tokens if with_reason else 0),
        regex="\n".join([f"{_REASON}[^\n]+", *lines] if with_reason else lines),
        json_schema=_json_schema(question, with_reason),
        temperature=scoring.temperature,
    )


def _json_schema(question: Question, with_reason: bool) -> dict[str, object]:
    number = {"type": "integer", "minimum": question.scale.low, "maximum": question.scale.high}
    properties: dict[str, object] = {"reason": {"type": "string"}} if with_reason else {}
    properties |= dict.fromkeys(question.criteria or ("score",), number)
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


# ---- answers ---------------------------------------------------------------------------------


def _only(kind: type[_A], answers: Sequence[Answer]) -> _A:
    (answer,) = _all(kind, answers)
    return answer


def _all(kind: type[_A], answers: Sequence[Answer]) -> list[_A]:
    found = [answer for answer in answers if isinstance(answer, kind)]
    if len(found) != len(answers):
        raise _first_failure(answers)
    return found


def _first_failure(answers: Sequence[Answer]) -> QueryFailed:
    return next(answer for answer in answers if isinstance(answer, QueryFailed))


def _expectation(question: Question, answers: Sequence[Answer], min_mass: float) -> Judgment:
    readings = [
        expected_score(answer.logprobs, question.scale, min_mass) for answer in _all(ScoreAnswer, answers)
    ]
    if not question.criteria:
        return readings[0]
    return sum_of_criteria(dict(zip(question.criteria, readings, strict=True)))


def _read_text(question: Question, answer: TextAnswer, supports_prefill: bool) -> Judgment:
    """Parse an answer in words. With `supports_prefill` the text follows the opening it was given.

    An answer that was cut off, or that did not come to the end of its thoughts, holds no score: of
    `Accuracy: 18` a cut might leave `1`.
    """
    if answer.cut:
        raise ScoreError("the answer was cut off before its end")
    text = without_thoughts(answer.text)
    if text is None:
        raise ScoreError("the answer ends within the judge's thoughts")
    if not question.criteria:
        score = float(parse_score(text, question.scale))
        return scored(score, sampled=score)
    if supports_prefill:
        text = criteria_lines(question.criteria)[0] + text
    points = parse_criteria_text(text, question.criteria, question.scale)
    total = math.fsum(points.values())
    return scored(total, sampled=total, criteria={name: float(value) for name, value in points.items()})


def _mean_reading(readings: Sequence[Judgment], scale: Scale, mass: float) -> Judgment:
    scores = [reading.score or 0.0 for reading in readings]
    distribution = tuple(scores.count(value) / len(scores) for value in scale.values)
    names = readings[0].criteria
    return scored(
        score=fmean(scores),
        mass=mass,
        distribution=distribution,
        entropy=entropy(distribution),
        spread=pstdev(scores),
        criteria={name: fmean(reading.criteria[name] for reading in readings) for name in names},
    )
