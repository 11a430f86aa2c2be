"""Benchmark items are read from our set and from EmoBench's files, with every mistake listed."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean

import pytest

from perm_ray.data.benchmark_items import TRUTH, read_emobench, read_truth
from perm_ray.errors import DataError

TRUTH_FILE = Path(__file__).parents[3] / "perm_ray/data/sets/truth.jsonl"
APPLICATION = {
    "qid": "1",
    "language": "en",
    "category": "Personal-Self",
    "question type": "Action",
    "scenario": "It rains on Ana's parade.",
    "subject": "Ana",
    "choices": ["Sing", "Sulk"],
    "label": "Sulk",
}
UNDERSTANDING = {
    "qid": "1",
    "language": "zh",
    "coarse_category": "complex_emotions",
    "scenario": "下雨了。",
    "subject": "安娜",
    "emotion_choices": ["高兴", "难过", "害怕"],
    "emotion_label": "难过",
    "cause_choices": ["下雨", "天晴"],
    "cause_label": "下雨",
}


def emobench(folder: Path, application: object = APPLICATION, understanding: object = UNDERSTANDING) -> Path:
    (folder / "EA.jsonl").write_text(json.dumps(application))
    (folder / "EU.jsonl").write_text(json.dumps(understanding))
    return folder


def test_emobench_becomes_one_item_of_application_and_two_parts_of_understanding(tmp_path: Path) -> None:
    first, emotion, cause = read_emobench(emobench(tmp_path))
    assert (first.item_id, first.part, first.whole) == ("EA/en/1", "EA", "EA")
    assert first.choices[first.answer] == "Sulk"
    assert first.question.startswith("It rains on Ana's parade.\n\nWhat should Ana best do?")
    assert (emotion.item_id, emotion.part, emotion.whole) == ("EU/zh/1", "EU emotion", "EU")
    assert (cause.item_id, cause.part, cause.chance) == ("EU/zh/1", "EU cause", 0.5)
    assert "安娜" in cause.question
    assert cause.tags == ("language/zh", "category/complex_emotions")


@pytest.mark.parametrize(
    ("application", "said"),
    [
        (APPLICATION | {"label": "Hum"}, "field label: expected one of choices"),
        (APPLICATION | {"language": "tlh"}, "field language: expected en or zh"),
        (APPLICATION | {"choices": "Sing"}, "field choices: expected a list of 2 to 9 texts"),
        ([1], "expected one JSON object"),
    ],
)
def test_what_is_wrong_in_emobench_is_said(tmp_path: Path, application: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_emobench(emobench(tmp_path, application))


def test_a_folder_without_emobench_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found no EA\.jsonl"):
        read_emobench(tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"choices": ["Yes", "No"], "answer": 2}, "field answer: expected the index"),
        ({"choices": ["Yes"]}, "field choices: expected a list of 2 to 9 texts"),
        ({"must": ["("]}, "field must: expected regular expressions"),
        ({}, "field must: expected a list of regular expressions, or choices"),
    ],
)
def test_what_is_wrong_in_an_item_is_said(tmp_path: Path, row: dict[str, object], said: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"id": "a", "category": "facts", "query": "Is it so?"} | row))
    with pytest.raises(DataError, match=said):
        read_truth(str(file))


def test_items_of_the_same_name_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    row = json.dumps({"id": "a", "category": "facts", "query": "Is it so?", "must": ["no"]})
    file.write_text(f"{row}\n{row}\n")
    with pytest.raises(DataError, match="an id of its own"):
        read_truth(str(file))
    file.write_text("\n")
    with pytest.raises(DataError, match="found none"):
        read_truth(str(file))


# ---- the rules of builtin:truth -----------------------------------------------------------------


def rows() -> list[dict]:
    return [json.loads(line) for line in TRUTH_FILE.read_text(encoding="utf-8").splitlines()]


def test_the_truth_set_has_every_category_and_both_kinds() -> None:
    items = read_truth(TRUTH)
    assert len(items) >= 120
    counts = Counter((item.part, bool(item.choices)) for item in items)
    for category in ("facts", "validation", "boundaries", "crisis", "sycophancy"):
        assert counts[category, True] >= 15
        assert counts[category, False] >= 5


def test_the_right_choice_is_known_by_neither_length_nor_place() -> None:
    longest, places, chance = [], Counter[float](), []
    for row in rows():
        if "choices" in row:
            sizes = [len(choice) for choice in row["choices"]]
            longest.append(sizes[row["answer"]] == max(sizes))
            places[row["answer"] / (len(sizes) - 1)] += 1
            chance.append(1 / len(sizes))
    assert abs(fmean(longest) - fmean(chance)) < 0.12
    assert abs(places[0.0] - places[1.0]) <= 0.2 * len(longest)


def test_rules_take_the_good_answer_and_refuse_the_bad_one_gibberish_and_nothing() -> None:
    by_name = {item.item_id: item for item in read_truth(TRUTH)}
    for row in rows():
        if "must" in row:
            item = by_name[row["id"]]
            assert item.keeps_rules(row["good"]), row["id"]
            for text in (row["bad"], "", "blorp the of seven and and"):
                assert not item.keeps_rules(text), (row["id"], text)


def test_no_two_items_share_a_sentence() -> None:
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows():
        for text in [row["query"], *row.get("choices", ())]:
            for sentence in text.replace("?", ".").replace("!", ".").split("."):
                if len(sentence.split()) > 4:
                    owners[sentence.strip().lower()].add(row["id"])
    assert {sentence: names for sentence, names in owners.items() if len(names) > 1} == {}
