"""Reading scenario files, and the two data sets that come with the library."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perm_ray.data.scenarios import load_scenarios, scenario_digest
from perm_ray.errors import DataError
from perm_ray.types import Scenario, Turn

GOOD = {"persona": "Noor, 75", "scenario": "Her garden is in flower.", "dialogue": ["Look at it!"]}


def write(path: Path, *rows: object) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def refusal(path: Path, *rows: object) -> str:
    with pytest.raises(DataError) as caught:
        load_scenarios(write(path, *rows))
    return str(caught.value)


def test_a_full_row_is_read(tmp_path: Path) -> None:
    row = {
        "id": "a-1",
        "persona": {"identity": " Noor, 75 ", "mood": "ignored"},
        "scenario": "Her garden is in flower.\n",
        "dialogue": [
            {"role": "seeker", "content": "Look at it!"},
            {"role": "supporter", "content": "Which one first?"},
            "The peonies.",
        ],
        "language": "en",
        "culture": "Dutch",
    }
    turns = (
        Turn("seeker", "Look at it!"),
        Turn("supporter", "Which one first?"),
        Turn("seeker", "The peonies."),
    )
    expected = Scenario("a-1", "Noor, 75", "Her garden is in flower.", turns, "en", "Dutch")
    assert load_scenarios(write(tmp_path / "a.jsonl", row)) == (expected,)


def test_blank_lines_are_skipped_and_ids_default_to_the_line(tmp_path: Path) -> None:
    source = write(tmp_path / "mine.jsonl", GOOD, "", "  ", {**GOOD, "id": None, "language": None})
    assert [s.scenario_id for s in load_scenarios(source)] == ["mine:1", "mine:4"]


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n" + json.dumps(GOOD).encode())
    assert len(load_scenarios(str(path))) == 2


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    (scenario,) = load_scenarios(write(tmp_path / "a.jsonl", {**GOOD, "scenario": "one\u2028two"}))
    assert scenario.situation == "one\u2028two"


@pytest.mark.parametrize(
    ("change", "where", "said"),
    [
        ({"persona": ""}, "persona", 'found ""'),
        ({"persona": 7}, "persona", "found 7"),
        ({"persona": {}}, "persona.identity", "found nothing"),
        ({"persona": {"identity": None}}, "persona.identity", "found nothing"),
        ({"scenario": "  "}, "scenario", "a text"),
        ({"scenario": "\ud800"}, "scenario", "surrogate"),
        ({"dialogue": []}, "dialogue", "a list of turns"),
        ({"dialogue": "hello"}, "dialogue", 'found "hello"'),
        ({"dialogue": ["a", ""]}, "dialogue[1]", 'found ""'),
        ({"dialogue": [{"role": "user", "content": "a"}]}, "dialogue[0].role", '"seeker" or "supporter"'),
        ({"dialogue": [{"role": [], "content": "a"}]}, "dialogue[0].role", "found []"),
        ({"dialogue": [{"role": "seeker"}]}, "dialogue[0].content", "found nothing"),
        ({"dialogue": [{"role": "supporter", "content": "a"}]}, "dialogue[0].role", "seeker to speak first"),
        ({"dialogue": [{"role": "seeker", "content": "a", "txt": 1}]}, "dialogue[0].txt", "unknown field"),
        ({"id": 3}, "id", "found 3"),
        ({"language": ["en"]}, "language", 'found ["en"]'),
        ({"culture": 1}, "culture", "found 1"),
        ({"cultur": "x"}, "cultur", 'expected "culture"'),
        ({"Persona": "x"}, "Persona", 'expected "persona"'),
        ({"zzz": "x"}, "zzz", "only persona, scenario"),
    ],
)
def test_a_bad_field_is_named_with_its_line(
    tmp_path: Path, change: dict[str, object], where: str, said: str
) -> None:
    row = json.dumps({**GOOD, **change})
    message = refusal(tmp_path / "bad.jsonl", GOOD, row)
    assert f"line 2, field {where}: " in message
    assert said in message
    assert "1 problem;" in message
    assert "bad.jsonl" in message


@pytest.mark.parametrize("name", ["persona", "scenario", "dialogue"])
def test_a_required_field_may_not_be_left_out(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path / "a.jsonl", {key: value for key, value in GOOD.items() if key != name})
    assert f"line 1, field {name}: " in message
    assert "found nothing" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"persona": "a",}', "column 17"),
        ('["a"]', 'found ["a"]'),
        ("null", "found null"),
        ("[" * 100_000, "bad JSON"),
        ("9" * 5_000, "bad JSON"),
    ],
)
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, line: str, said: str) -> None:
    message = refusal(tmp_path / "a.jsonl", GOOD, "", line)
    assert "line 3: expected one JSON object" in message
    assert said in message


def test_text_that_is_not_utf8_is_refused_by_position(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"persona": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"line 2: expected UTF-8 text, found byte 0xe9 at byte 17"):
        load_scenarios(str(path))


def test_a_repeated_id_gives_both_lines(tmp_path: Path) -> None:
    message = refusal(tmp_path / "a.jsonl", {**GOOD, "id": "x"}, GOOD, {**GOOD, "id": "x"})
    assert 'line 3, field id: expected an id of its own, found "x", which line 1 has too' in message


def test_all_problems_come_in_one_error_of_bounded_length(tmp_path: Path) -> None:
    message = refusal(tmp_path / "a.jsonl", *({**GOOD, "persona": "", "scenario": 1} for _ in range(15)))
    assert "30 problems" in message
    assert message.count("jsonl, line ") == 20
    assert message.endswith("and 10 more")
    assert message.index("line 2,") < message.index("line 10,")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("builtin:trian", "builtin:train, builtin:heldout, builtin:daily"),
        ("/no/such/file.jsonl", "There is no data file"),
        (".", "is a folder"),
    ],
)
def test_a_source_that_is_no_file_is_refused_in_a_sentence(source: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load_scenarios(source)
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "no scenarios" in refusal(tmp_path / "empty.jsonl", "", "  ")


NAMES = st.sampled_from(["persona", "scenario", "dialogue", "id", "identity", "role", "content", "other"])
JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.lists(JSON, max_size=3))
def test_any_json_is_read_or_refused_with_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, rows: list[object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    try:
        load_scenarios(str(path))
    except DataError as error:
        str(error).encode()


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    row = {**GOOD, "id": "x"}
    turned = dict(reversed(row.items()))
    first = load_scenarios(write(tmp_path / "a.jsonl", row))
    same = load_scenarios(write(tmp_path / "b.jsonl", "", {**turned, "persona": {"identity": "Noor, 75"}}))
    other = load_scenarios(write(tmp_path / "c.jsonl", {**row, "language": "nl"}))
    assert re.fullmatch("[0-9a-f]{64}", scenario_digest(first))
    assert scenario_digest(first) == scenario_digest(same) != scenario_digest(other)
    assert scenario_digest(first * 2) != scenario_digest(first)


# ---- the shipped data -----------------------------------------------------------------------

TRAIN, HELDOUT, DAILY = (load_scenarios(f"builtin:{name}") for name in ("train", "heldout", "daily"))
EVERY = TRAIN + HELDOUT + DAILY


def num_words(text: str) -> int:
    """Words between spaces; Chinese has none, so two of its characters count as a word."""
    return max(len(text.split()), len(re.findall("[\u4e00-\u9fff]", text)) // 2)


def test_the_shipped_sets_have_their_sizes_and_distinct_ids() -> None:
    assert (len(TRAIN), len(HELDOUT), len(DAILY)) == (80, 32, 68)
    assert len({s.scenario_id for s in EVERY}) == 180


@pytest.mark.parametrize("scenario", EVERY, ids=lambda s: s.scenario_id)
def test_each_shipped_scenario_is_short_and_tagged(scenario: Scenario) -> None:
    assert num_words(scenario.persona) <= 30
    assert num_words(scenario.situation) <= 45
    assert all(num_words(turn.content) <= 40 for turn in scenario.dialogue)
    assert re.fullmatch("[a-z]{2}", scenario.language or "")
    assert scenario.culture


def test_no_shipped_text_appears_twice() -> None:
    texts = [text.casefold() for s in EVERY for text in (s.persona, s.situation, s.query)]
    assert not [text for text, count in Counter(texts).items() if count > 1]


def test_the_shipped_sets_are_varied() -> None:
    for scenarios, num_languages in ((TRAIN, 6), (HELDOUT, 3), (DAILY, 6)):
        assert len({s.language for s in scenarios}) >= num_languages
        assert len({s.culture for s in scenarios}) >= len(scenarios) * 0.6
        assert sum(s.language == "en" for s in scenarios) > len(scenarios) * 0.8
        assert any(len(s.dialogue) > 1 for s in scenarios)
