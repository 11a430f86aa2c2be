"""Answers in words: what is a score, and what only looks like one."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perm_ray.judges.parsing import MAX_CHARS, parse_criteria_text, parse_score
from perm_ray.judges.perspective import load_perspective
from perm_ray.judges.scoring import ScoreError
from perm_ray.types import Scale

CRITERIA = load_perspective("bystander").criteria
CRITERION_SCALE = load_perspective("bystander").number_scale

FIVE = Scale(1, 5)
FORMS = (
    "Score: {}",
    "**Score:** {}",
    "**Score: {}**",
    "**Score**: {}",
    "Score: {}/5",
    "Score: {} / 5",
    "Score: {} out of 5",
    "Score: [{}]",
    "Score = {}",
    "score is {}",
    "SCORE: {}.",
    "Rating: {}",
    "Final score: {}",
    "### Score: {}",
    "- Score: {}",
    "> Score: {}",
    "| Score | {} |",
    "| Score | {} | warm |",
    "Score: **{}**/5",
    "Score: {} (out of 5)",
    "Score: [{}]/5",
    "Score: `{}`",
    "Score: <{}>",
    "Score: {} (warm and fitting)",
    "Score (1-5): {}",
    "The score is {}.",
    "Overall rating: {}",
    "{}",
    " {} ",
    "{}.",
    "**{}**",
    "{}/5",
    "[{}]",
    '{{"score": {}}}',
    '{{"score": "{}"}}',
    '{{"reason": "I felt 3 things.", "score": {}}}',
    '```json\n{{"score": {}, "reason": "x"}}\n```',
    "Reason: he named 2 of the 3 fears.\nScore: {}",
    "Reason: 10 years, and one sentence.\n\n**Score:** {}\n",
    "Score: {}\nReason: it took 20 words.",
    "Score: {0}\nFinal score: {0}",
    'My answer:\n```json\n{{"score": {0}}}\n```\nScore: {0}',
)
NO_SCORES = (
    "",
    "   ",
    "lovely",
    "Score:",
    "Score: five",
    "Score: 0",
    "Score: 6",
    "Score: 50",
    "Score: 250",
    "Score: 45",
    "Score: 4.5",
    "Score: 4,5",
    "Score: -4",
    "Score: 3-4",
    "Score: 3–4",
    "Score: 3\u20104",  # a hyphen that is not the keyboard's
    "Score: 3 \u2212 4",  # a minus sign
    "Score: \u22124",
    "Score: 3..4",
    "Score: 3…4",
    "Score: 3 → 4",
    "Score: 3 & 4",
    "Score: 3 (or 4)",
    "Score: 3+",
    "Score: 3 ± 1",
    "Score: <4",
    "Score: [4",
    "Score: 4½",
    "Score (1-10): 4",
    "#4",
    "4)",
    "Score: 3 to 4",
    "Score: 3 or 4",
    "Score: 4/10",
    "Score: 4/5/2026",
    "Score: 4%",
    "Score: 4th",
    "Score: 4\nScore: 2",
    "Score: 4\n**Score:** 5",
    "Score: 4\rScore: 2",
    "Score: 4\u2028Score: 2",
    'Score: 2\n```json\n{"score": 4}\n```',
    '```json\n{"score": 4}\n```\n```json\n{"score": 2}\n```',
    "Reason: I felt 4 things.",
    "I would give it 4 stars, or 5.",
    "4.5",
    "3-4",
    "4 5",
    "2026-04-05",
    '{"score": 4.5}',
    '{"score": 6}',
    '{"score": true}',
    '{"score": null}',
    '{"score": [4]}',
    '{"score": 4, "score": 2}',
    '{"reason": "Score: 4"}',
    '{"score": 1e400}',
    "[" * 5000,
    "9" * 5000,
    "Score: " * 3000,
    "x" * (MAX_CHARS + 1),
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", FIVE.values)
def test_every_form_of_a_score_is_read(form: str, value: int) -> None:
    assert parse_score(form.format(value), FIVE) == value


@pytest.mark.parametrize("text", ["Score：４", "Ｓcore: 4", "Score: ４／５"])
def test_full_width_characters_are_read(text: str) -> None:
    assert parse_score(text, FIVE) == 4


@pytest.mark.parametrize("text", NO_SCORES)
def test_what_is_no_score_is_never_a_number(text: str) -> None:
    with pytest.raises(ScoreError):
        parse_score(text, FIVE)


HOSTILE = (
    " ",
    "*",
    "_ ",
    "\t",
    " |",
    "(",
    "```\n",
    "```json\n{",
    "Score",
    "Score: ",
    "Score:4 ",
    "1",
    "1 ",
    '{"score":',
)


@pytest.mark.parametrize("filling", HOSTILE)
@pytest.mark.parametrize("start", ["", "Score", "Score:", "Score: 4", "4", "| Score |", "```json\n"])
def test_no_text_takes_long_to_read(start: str, filling: str) -> None:
    text = (start + filling * MAX_CHARS)[: MAX_CHARS - 1] + "x"
    begun = time.process_time()
    with contextlib.suppress(ScoreError):
        parse_score(text, FIVE)
    with contextlib.suppress(ScoreError):
        parse_criteria_text(text, CRITERIA, CRITERION_SCALE)
    assert time.process_time() - begun < 1.0


blanks = st.text(" \t*_\u00a0\u3000", max_size=4)


@given(st.sampled_from(FORMS), st.sampled_from(FIVE.values), blanks, blanks, st.booleans())
def test_blanks_emphasis_and_full_width_change_no_score(
    form: str, value: int, before: str, after: str, wide: bool
) -> None:
    text = form.format(value)
    if wide and not text.startswith(("{", "`", "My")):  # JSON's own marks are ASCII
        text = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
    assert parse_score(f"{before}{text}{after}" if "{" not in text else text, FIVE) == value


@given(st.text())
def test_any_text_gives_a_score_of_the_scale_or_a_score_error(text: str) -> None:
    for answer in (text, f"Score: {text}", f'{{"score": {text}}}', f"{text}\nScore: 4"):
        try:
            assert parse_score(answer, FIVE) in FIVE.values
        except ScoreError:
            continue


@given(st.from_regex(r"(Score|Rating)? ?[:=]? ?\*{0,2}[\d./%\-–]{0,6}\*{0,2}( out of \d)?", fullmatch=True))
def test_what_nearly_is_a_score_gives_one_of_the_scale_or_a_score_error(text: str) -> None:
    with contextlib.suppress(ScoreError):
        assert parse_score(text, FIVE) in FIVE.values


@given(st.integers(-1000, 1000).filter(lambda value: value not in FIVE.values))
def test_no_number_off_the_scale_is_read_in_any_form(value: int) -> None:
    for form in FORMS:
        with pytest.raises(ScoreError):
            parse_score(form.format(value), FIVE)


POINTS = {"content": 12, "structure": 8, "efficiency": 0, "objectivity": 20, "accuracy": 15}
LINES = "\n".join(f"{name.capitalize()}: {value}" for name, value in POINTS.items())


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        "\n".join(reversed(LINES.split("\n"))),
        LINES.replace("12", "12/20"),
        LINES + "\nTotal: 99",
        "Reason: 3 of 5 are fine.\n" + LINES,
        "\n".join(f"**{line.replace(':', ':**')}" for line in LINES.split("\n")),
        "\n".join(f"| {name} | {value} |" for name, value in POINTS.items()),
        "\n".join(f"{i}. {line}" for i, line in enumerate(LINES.split("\n"), start=1)),
        json.dumps(POINTS),
        "```json\n" + json.dumps({"reason": "sound", **POINTS, "total": 1}) + "\n```",
        "\n".join(f"| {name} | {value}/20 | to the point |" for name, value in POINTS.items()),
        LINES.replace("12", "**12** / 20").replace("\n", "\r\n"),
    ],
)
def test_criteria_are_read_line_by_line_or_as_json(text: str) -> None:
    found = parse_criteria_text(text, CRITERIA, CRITERION_SCALE)
    assert found == POINTS
    assert list(found) == list(CRITERIA)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12",
        LINES.replace("20", "21"),
        LINES.replace("12", "-1"),
        LINES.replace("12", "12.5"),
        LINES.replace("12", "12/100"),
        LINES.replace("Structure", "Warmth"),
        LINES.replace("Structure: 8\n", ""),
        LINES + "\nAccuracy: 3",
        json.dumps({**POINTS, "content": 21}),
    ],
)
def test_criteria_that_are_missing_doubled_or_off_the_scale_are_refused(text: str) -> None:
    with pytest.raises(ScoreError):
        parse_criteria_text(text, CRITERIA, CRITERION_SCALE)


@given(st.text())
def test_free_text_never_crashes_the_reader_of_criteria(text: str) -> None:
    with pytest.raises(ScoreError):
        parse_criteria_text(text, CRITERIA, CRITERION_SCALE)


@pytest.mark.parametrize("text", ["Score: 5 (out of ten)", "Score: 5 out of ten", "Rating: 5 / ten"])
def test_a_score_out_of_something_in_words_is_refused(text: str) -> None:
    with pytest.raises(ScoreError):
        parse_score(text, Scale(1, 5))
