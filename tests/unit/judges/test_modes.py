"""The scoring modes, put to engines that answer as the test says."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import pytest

from perm_ray.config.judges import ScoringConfig
from perm_ray.judges import modes
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
from perm_ray.judges.scoring import ScoreError
from perm_ray.types import Judgment, Message, Scale

CHAT = (Message("system", "Judge."), Message("user", "How lovely!"))
ONE = Question(CHAT, "I give it ", Scale(1, 5))
TWO = Question(CHAT, "My points:\n", Scale(0, 20), ("content", "accuracy"))


def run(
    question: Question,
    answer: Callable[[Query], Answer],
    mode: str = "expected",
    supports_prefill: bool = True,
    **scoring: float,
) -> tuple[Judgment, list[list[Query]]]:
    """Drive a mode to its end; returns the reading and every round of asks."""
    config = ScoringConfig(mode=mode, **scoring)  # pyright: ignore[reportArgumentType]
    steps = modes.begin(question, config, supports_prefill=supports_prefill, seed=7)
    asks: Sequence[Query] = next(steps)
    rounds = [list(asks)]
    while True:
        try:
            asks = steps.send([answer(ask) for ask in asks])
        except StopIteration as end:
            return end.value, rounds
        rounds.append(list(asks))


def sure(value: int) -> Callable[[Query], Answer]:
    return lambda ask: ScoreAnswer(
        {v: 0.0 if v == value else -math.inf for v in ask.values} if isinstance(ask, ScoreQuery) else {}
    )


def test_expected_asks_once_right_after_the_opening() -> None:
    reading, rounds = run(ONE, sure(4))
    assert rounds == [[ScoreQuery(CHAT, "I give it ", (1, 2, 3, 4, 5))]]
    assert (reading.score, reading.sampled, reading.mass, reading.entropy) == (4.0, 4.0, 1.0, 0.0)


def test_expected_asks_for_each_criterion_by_itself() -> None:
    points = {"My points:\nContent: ": 12, "My points:\nAccuracy: ": 20}
    reading, rounds = run(TWO, lambda ask: sure(points[ask.prefix])(ask))
    assert [ask.prefix for ask in rounds[0]] == list(points)
    assert reading.criteria == {"content": 12.0, "accuracy": 20.0}
    assert reading.score == 32.0
    assert len(reading.distribution) == 41


def test_reasoned_scores_after_the_judges_own_reason() -> None:
    def answer(ask: Query) -> Answer:
        return TextAnswer(" She is met.") if isinstance(ask, TextQuery) else sure(5)(ask)

    reading, rounds = run(ONE, answer, "reasoned", max_reason_tokens=33)
    (reason,), (value,) = rounds
    assert isinstance(reason, TextQuery)
    assert (reason.prefix, reason.max_tokens, reason.temperature) == ("Reason: ", 33, 0.0)
    assert reason.regex is not None
    assert re.fullmatch(reason.regex, "She is met, and feels it.")
    assert not re.fullmatch(reason.regex, "She is met, and feels it.\nScore: 5")
    assert value.prefix == "Reason: She is met.\n\nI give it "
    assert (reading.score, reading.reason) == (5.0, "She is met.")


def test_sampled_gives_the_mean_and_the_spread_by_hand() -> None:
    texts = iter(["2", "4", "4", "5"])
    reading, rounds = run(ONE, lambda _: TextAnswer(next(texts)), "sampled", num_samples=4, temperature=0.7)
    asks = [ask for ask in rounds[0] if isinstance(ask, TextQuery)]
    assert [ask.seed for ask in asks] == [7, 8, 9, 10]
    assert {ask.temperature for ask in asks} == {0.7}
    assert all(
        ask.regex and re.fullmatch(ask.regex, "3") and not re.fullmatch(ask.regex, "6") for ask in asks
    )
    assert reading.score == 3.75
    assert reading.spread == pytest.approx(math.sqrt((1.75**2 + 2 * 0.25**2 + 1.25**2) / 4))
    assert reading.distribution == (0.0, 0.25, 0.0, 0.5, 0.25)
    assert reading.mass == 1.0


def test_a_sample_that_is_no_score_is_left_out_and_lowers_the_mass() -> None:
    texts = iter(["2", "lovely", "250", "4"])
    reading, _ = run(ONE, lambda _: TextAnswer(next(texts)), "sampled")
    assert (reading.score, reading.mass) == (3.0, 0.5)
    with pytest.raises(ScoreError, match="0 of 4 samples"):
        run(ONE, lambda _: TextAnswer("lovely"), "sampled")


def test_sampled_criteria_go_on_from_the_first_label() -> None:
    reading, rounds = run(TWO, lambda _: TextAnswer("12\nAccuracy: 8"), "sampled", num_samples=2)
    ask = rounds[0][0]
    assert isinstance(ask, TextQuery)
    assert ask.prefix == "My points:\nContent: "
    assert ask.regex is not None
    assert re.fullmatch(ask.regex, "12\nAccuracy: 8")
    assert not re.fullmatch(ask.regex, "12\nAccuracy: 21")
    assert (reading.score, reading.spread, reading.criteria) == (
        20.0,
        0.0,
        {"content": 12.0, "accuracy": 8.0},
    )


def test_an_engine_that_only_chats_is_told_the_form_and_read_strictly() -> None:
    answer = "Reason: She feels met.\nScore: 4"
    reading, rounds = run(ONE, lambda _: TextAnswer(answer), "reasoned", supports_prefill=False)
    ((ask,),) = rounds
    assert isinstance(ask, TextQuery)
    assert ask.prefix == ""
    assert ask.messages[-1].content.startswith("How lovely!")
    assert "Score: <whole number, 1 to 5>" in ask.messages[-1].content
    assert ask.regex is not None
    assert re.fullmatch(ask.regex, answer)
    assert ask.json_schema is not None
    assert ask.json_schema["required"] == ["reason", "score"]
    assert (reading.score, reading.sampled, reading.reason) == (4.0, 4.0, answer)


@pytest.mark.parametrize("text", ["Score: 250", "lovely", "", "Score: 4\nScore: 2", "I felt 4 things."])
def test_a_chat_answer_without_a_score_is_never_a_number(text: str) -> None:
    with pytest.raises(ScoreError):
        run(ONE, lambda _: TextAnswer(text), "reasoned", supports_prefill=False)


def test_chat_criteria_have_a_line_or_a_key_each() -> None:
    text = "Reason: Sound.\nContent: 15\nAccuracy: 20"
    reading, rounds = run(TWO, lambda _: TextAnswer(text), "reasoned", supports_prefill=False)
    ask = rounds[0][0]
    assert isinstance(ask, TextQuery)
    assert ask.json_schema is not None
    assert ask.json_schema["required"] == ["reason", "content", "accuracy"]
    assert reading.criteria == {"content": 15.0, "accuracy": 20.0}


@pytest.mark.parametrize("mode", ["expected", "reasoned", "sampled"])
@pytest.mark.parametrize("supports_prefill", [True, False])
def test_no_answer_is_no_score_in_any_mode(mode: str, supports_prefill: bool) -> None:
    with pytest.raises(QueryFailed, match="timeout: gone"):
        run(ONE, lambda _: QueryFailed("timeout: gone"), mode, supports_prefill)


def test_an_unsure_judge_has_no_opinion() -> None:
    def answer(ask: Query) -> Answer:
        assert isinstance(ask, ScoreQuery)
        return ScoreAnswer(dict.fromkeys(ask.values, math.log(0.01)))

    with pytest.raises(ScoreError, match=r"less than 0\.2"):
        run(ONE, answer)
