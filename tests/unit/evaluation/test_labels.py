"""Readers of rated replies: small samples of each format, and what a bad file is answered with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perm_ray.data.items import read_items
from perm_ray.errors import DataError
from perm_ray.evaluation.calibration.labelled import check_perspectives
from perm_ray.evaluation.calibration.labels import read_labels
from perm_ray.types import Scale

ROW = {
    "id": "a",
    "persona": {"identity": "Ana, 41", "age": 41},
    "scenario": "She was passed over.",
    "query": "I should be happy for Rui.",
    "response": "You can be glad for him and sad for yourself.",
    "language": "en",
    "labels": {"expression": {"ana": 4, "ben": 5}, "coldness": {"ana": 1, "ben": None}},
    "model_labels": {"expression": {"m": 3}},
    "scale": {"expression": [1, 5], "coldness": [0, 2]},
}


def jsonl(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "rated.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def complaint(path: Path, *more) -> str:
    with pytest.raises(DataError) as caught:
        read_labels(path, *more)
    return str(caught.value)


# ---- JSONL -----------------------------------------------------------------------------------


def test_a_row_of_the_neutral_format(tmp_path: Path) -> None:
    second = {**ROW, "id": "b", "analysis": "Torn.", "labels": {"expression": {"ben": 2}}}
    del second["query"], second["language"]
    second["dialogue"] = [{"role": "seeker", "content": "Nobody came."}, "So there."]
    found = read_labels(jsonl(tmp_path, ROW, "", second), {"coldness": "-reception"})
    assert [d.name for d in found.dimensions] == ["expression", "coldness"]
    assert [(d.perspective, d.turned) for d in found.dimensions] == [
        ("expression", False),
        ("reception", True),
    ]
    first, other = (labelled.item for labelled in found.items)
    assert (first.item_id, first.scenario.persona, first.scenario.language) == ("a", "Ana, 41", "en")
    assert (first.sections.analysis, other.sections.analysis) == (None, "Torn.")
    assert other.scenario.query == "Nobody came."
    assert found.items[0].labels == {"expression": {"ana": 4, "ben": 5}, "coldness": {"ana": 1}}
    assert found.items[0].model_labels == {"expression": {"m": 3}}
    assert found.raters("expression") == ("ana", "ben")
    assert found.raters("expression", models=True) == ("m",)
    ratings = found.ratings("expression", ("ana", "ben"))
    assert np.array_equal(ratings, [[4, 5], [np.nan, 2]], equal_nan=True)


def test_a_turned_dimension_is_mirrored_on_its_scale(tmp_path: Path) -> None:
    row = {**ROW, "labels": {"coldness": {"ana": 0, "ben": 2}}}
    turned = read_labels(jsonl(tmp_path, row), {"coldness": "-expression"})
    assert turned.items[0].labels == {"coldness": {"ana": 2, "ben": 0}}


def test_scales_may_be_given_once_for_all_rows(tmp_path: Path) -> None:
    row = {key: value for key, value in ROW.items() if key != "scale"}
    scales = {"expression": Scale(1, 5), "coldness": Scale(0, 2)}
    found = read_labels(jsonl(tmp_path, row), given_scales=scales)
    assert {d.name: d.scale for d in found.dimensions} == scales
    assert "field scale.expression: expected the scale of this dimension" in complaint(jsonl(tmp_path, row))


def test_a_dimension_of_no_perspective_is_held_against_none(tmp_path: Path) -> None:
    found = read_labels(jsonl(tmp_path, ROW), {"expression": "none"})
    assert [d.perspective for d in found.dimensions] == [None, None]
    with pytest.raises(DataError, match="No dimension of the data"):
        check_perspectives(found.dimensions, ["expression"])
    mapped = read_labels(jsonl(tmp_path, ROW), {"coldness": "warmth"})
    with pytest.raises(DataError, match="is mapped to 'warmth', and the judges are expression"):
        check_perspectives(mapped.dimensions, ["expression"])
    assert "--map names the dimension 'warmth'" in complaint(jsonl(tmp_path, ROW), {"warmth": "expression"})


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"persona": " "}, "field persona: expected a text"),
        ({"persona": {"name": "Ana"}}, "field persona.identity: expected a text, found nothing"),
        ({"response": None}, "field response: expected a text, found nothing"),
        ({"response": "\ud800"}, "field response: expected Unicode text"),
        ({"dialogue": ["x"]}, "field dialogue: expected either query or dialogue, found both of them"),
        ({"query": None, "dialogue": []}, "field dialogue: expected a list of turns, found []"),
        ({"query": None, "dialogue": [{"role": "supporter", "content": "x"}]}, "dialogue[0].role"),
        ({"analisys": "x"}, 'field analisys: expected the field "analysis"'),
        (
            {"labels": {"expression": {"ana": 6}}},
            "labels.expression.ana: expected a number from 1 to 5, found 6",
        ),
        ({"labels": {"expression": {"ana": "four"}}}, "labels.expression.ana: expected a number from 1 to 5"),
        ({"labels": {"expression": {"ana": True}}}, "labels.expression.ana: expected a number"),
        ({"labels": {"expression": 4}}, "labels.expression: expected an object {rater: value}"),
        ({"labels": [4]}, "field labels: expected an object"),
        ({"scale": {"expression": [5, 1]}}, "field scale.expression: expected two whole numbers"),
    ],
)
def test_every_problem_is_named_with_its_line_and_field(tmp_path: Path, change, where: str) -> None:
    path = tmp_path / "rated.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "id": "b", **change}) + "\n")
    text = complaint(path)
    assert "rated.jsonl, line 2" in text
    assert where in text


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    other_scale = {**ROW, "id": "c", "scale": {"expression": [1, 7]}}
    text = complaint(jsonl(tmp_path, ROW, "{", "[1]", ROW, other_scale))
    assert text.startswith(f"{tmp_path / 'rated.jsonl'} has 4 problems")
    assert "line 2: expected one JSON object, found bad JSON" in text
    assert "line 3: expected one JSON object, found [1]" in text
    assert "line 4, field id: expected an id of its own" in text
    assert "line 5, field scale.expression: expected [1, 5], as in the rows before" in text
    many = complaint(jsonl(tmp_path, *["{"] * 30))
    assert "30 problems" in many
    assert "and 10 more" in many


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "There is no file" in complaint(tmp_path / "nothing.jsonl")
    assert "is a folder" in complaint(tmp_path)
    assert "has no labels" in complaint(jsonl(tmp_path, {**ROW, "labels": {}}))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}\n')
    assert "line 1: expected UTF-8 text, found byte 0xe9" in complaint(tmp_path / "latin.jsonl")


def test_items_need_no_labels(tmp_path: Path) -> None:
    plain = {key: ROW[key] for key in ("persona", "scenario", "query", "response")}
    first, second = read_items(jsonl(tmp_path, plain, {**plain, "response": "Well.", "source": "mine"}))
    assert (first.item_id, second.item_id) == ("rated:1", "rated:2")
    assert first.scenario.scenario_id == second.scenario.scenario_id, "replies to one query are a group"
    with pytest.raises(DataError, match="has no rows"):
        read_items(jsonl(tmp_path))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from([*ROW, "dialogue", "analysis"]), anything, max_size=6))
def test_no_row_gets_past_the_reader_in_another_way_than_an_error(tmp_path_factory, change) -> None:
    path = jsonl(tmp_path_factory.mktemp("rows"), json.dumps({**ROW, **change}))
    try:
        found = read_labels(path)
    except DataError:
        return
    for dimension in found.dimensions:
        ratings = found.ratings(dimension.name, found.raters(dimension.name))
        given_ratings = ratings[~np.isnan(ratings)]
        assert ((given_ratings >= dimension.scale.low) & (given_ratings <= dimension.scale.high)).all()
