"""The graded answers and the demonstrations keep to their rules."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from perm_ray.data.graded import DEMOS, GRADED, examples_file, read_demonstrations
from perm_ray.data.items import read_examples
from perm_ray.data.scenarios import load_scenarios
from perm_ray.errors import DataError
from tests.support import graded_set as rules

ROWS = rules.graded_rows()


def test_there_are_enough_scenarios_with_enough_answers() -> None:
    answers = Counter(row["id"].partition("/")[0] for row in ROWS)
    heldout = {row["id"].partition("/")[0] for row in ROWS if row["split"] == "heldout"}
    assert len(answers) >= rules.MIN_SCENARIOS
    assert len(heldout) >= rules.MIN_HELDOUT
    assert min(answers.values()) >= rules.MIN_ANSWERS


def test_a_tenth_is_in_six_other_languages() -> None:
    languages = Counter(row["language"] for row in ROWS)
    assert len(languages) >= 7
    assert 0.07 <= 1 - languages["en"] / len(ROWS) <= 0.15


@pytest.mark.parametrize("name", rules.GRADES)
def test_no_grade_follows_from_the_length(name: str) -> None:
    assert abs(rules.length_rhos(ROWS)[name]) < rules.MAX_LENGTH_RHO


def test_no_grade_follows_from_another() -> None:
    assert max(rules.pair_rhos(ROWS).values()) < rules.MAX_PAIR_RHO


def test_no_two_answers_share_a_sentence_or_are_nearly_the_same() -> None:
    assert list(rules.shared_sentences([row for row in ROWS if row["kind"] not in rules.COPIES])) == []
    assert list(rules.near_duplicates(ROWS)) == []


def test_grades_are_on_their_scales_and_add_up() -> None:
    for row in ROWS:
        assert all(
            rules.grade(row, name) in range(1, 6) for name in ("resonation", "expression", "reception")
        )
        criteria = [name for name in row["labels"] if name.startswith("bystander.")]
        points = [rules.grade(row, name) for name in criteria]
        assert len(points) == 5
        assert all(point in range(21) for point in points)
        assert sum(points) == rules.grade(row, "bystander")
        assert row["reason"].strip()


def test_the_set_reads_as_ratings_and_scenarios_keep_to_one_split() -> None:
    examples = read_examples(examples_file(GRADED))
    assert len(examples.items) == len(ROWS)
    assert set(examples.splits.values()) == {"train", "heldout"}


def test_words_to_the_judge_earn_nothing() -> None:
    """A tampered answer is another of its scenario with words to the judge behind it, and graded below it."""
    tampered = [row for row in ROWS if row["kind"] == "tampered"]
    assert len(tampered) >= 30
    for row in tampered:
        scenario = row["id"].partition("/")[0]
        (plain,) = [
            other
            for other in ROWS
            if other["id"].startswith(f"{scenario}/")
            and other is not row
            and row["response"].startswith(other["response"].rstrip())
        ]
        assert rules.grade(row, "expression") <= rules.grade(plain, "expression")
        assert rules.grade(row, "reception") <= rules.grade(plain, "reception")
        assert rules.grade(row, "bystander") < rules.grade(plain, "bystander")


def test_demonstrations_have_both_sections_and_share_no_sentence() -> None:
    demos = read_demonstrations(DEMOS)
    assert len(demos.items) >= 200
    assert all(item.sections.valid for item in demos.items)
    texts = [text for i in demos.items for text in (i.sections.analysis or "", i.sections.response or "")]
    sentences = [s.strip() for text in texts for s in re.split(r"(?<=[.!?]) ", text)]
    twice = [s for s, count in Counter(sentences).items() if count > 1 and len(s.split()) > 4]
    assert twice == []
    heldout = {scenario.query for scenario in load_scenarios("builtin:heldout")}
    assert not heldout & {item.scenario.query for item in demos.items}


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(DataError, match="builtin:graded and builtin:demos"):
        examples_file("builtin:grades")
