"""The rules that the graded answers keep: scales, splits, grades that come apart, no answer twice."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations

import pytest
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer

from perm_ray.data.graded import GradedAnswer, GradedScenario, load_graded
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, load_perspective

SCENARIOS = load_graded()
ANSWERS = [answer for scenario in SCENARIOS for answer in scenario.answers]
READS = {name: load_perspective(name).reads for name in BUILTIN_PERSPECTIVES}


def length(answer: GradedAnswer, section: str) -> int:
    text = getattr(answer.sections, section)
    return len(text.split()) if " " in text else len(text) // 2  # Chinese has no blanks


def test_there_is_enough_and_a_quarter_is_held_out() -> None:
    assert len(SCENARIOS) >= 160
    assert len(load_graded("heldout")) >= 40
    assert {each.split for each in SCENARIOS} == {"train", "heldout"}
    assert min(len(each.answers) for each in SCENARIOS) >= 5
    languages = Counter(each.scenario.language for each in SCENARIOS)
    assert len(languages) >= 7
    assert sum(languages.values()) - languages["en"] >= len(SCENARIOS) // 10


def test_no_scenario_is_in_both_splits_or_twice() -> None:
    for names in ([s.graded_id for s in SCENARIOS], [s.scenario.scenario_id for s in SCENARIOS]):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.graded_id)
def test_grades_are_on_their_scales_and_say_why(scenario: GradedScenario) -> None:
    bystander = load_perspective("bystander")
    for answer in scenario.answers:
        for name in ("resonation", "expression", "reception"):
            assert answer.grades[name] in (1, 2, 3, 4, 5)
        assert tuple(sorted(answer.criteria)) == tuple(sorted(bystander.criteria))
        assert all(0 <= points <= 20 for points in answer.criteria.values())
        assert answer.sections.valid
        assert answer.reason.strip()
    totals = [
        sum(answer.grades[name] for name in READS if name != "bystander") for answer in scenario.answers
    ]
    assert max(totals) - min(totals) >= 6  # clearly different worth


@pytest.mark.parametrize("name", BUILTIN_PERSPECTIVES)
def test_no_grade_follows_from_length(name: str) -> None:
    lengths = [length(answer, READS[name]) for answer in ANSWERS]
    assert abs(spearmanr(lengths, [answer.grades[name] for answer in ANSWERS]).statistic) < 0.15


@pytest.mark.parametrize(("one", "other"), combinations(BUILTIN_PERSPECTIVES, 2))
def test_no_grade_follows_from_another(one: str, other: str) -> None:
    pairs = [(answer.grades[one], answer.grades[other]) for answer in ANSWERS]
    assert spearmanr(*zip(*pairs, strict=True)).statistic < 0.8


def test_no_two_answers_share_a_sentence() -> None:
    places: dict[str, set[tuple[int, str]]] = {}
    for number, answer in enumerate(ANSWERS):
        for section in ("analysis", "response"):
            for sentence in re.split(r"(?<=[.!?。！？])\s*", getattr(answer.sections, section)):
                key = re.sub(r"\W+", " ", sentence.lower()).strip()
                if len(key) >= 12:
                    places.setdefault(key, set()).add((number, section))
    assert [sentence for sentence, where in places.items() if len(where) > 1] == []


@pytest.mark.parametrize("section", ["analysis", "response"])
def test_no_two_texts_are_nearly_the_same(section: str) -> None:
    texts = [getattr(answer.sections, section) for answer in ANSWERS]
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(4, 4), sublinear_tf=True).fit_transform(texts)
    alike = (vectors @ vectors.T).tocoo()
    near = [(i, j) for i, j, v in zip(alike.row, alike.col, alike.data, strict=True) if i < j and v > 0.7]
    assert [(texts[i][:60], texts[j][:60]) for i, j in near] == []
