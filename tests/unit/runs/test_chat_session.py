"""A chat's session: what streams, what is judged, and what is kept, once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from perm_ray.config.load import load_config
from perm_ray.data.items import has_preferences, make_scenario, read_preferences
from perm_ray.errors import ConfigError, DataError
from perm_ray.runs.chat_session import Chat, Event, Pair, plan_chat
from tests.support.scripted_chat import GOOD, scripted_chat
from tests.support.tiny_model import write_tiny_model

SCENARIO = make_scenario("Noor, 75", "She is\u2028alone.", "Nobody came.", "en", None)
OTHER = ("# Analysis\nNo.\n# Response\nCheer up.",)


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [tiny_model, write_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=7)]


def answered(chat: Chat, shuffled: bool = False) -> tuple[Pair, list[Event]]:
    async def collect() -> tuple[Pair, list[Event]]:
        pair = chat.begin(SCENARIO, shuffled)
        return pair, [event async for event in chat.answer(pair)]

    return asyncio.run(collect())


def test_both_answers_stream_and_are_judged(models: list[Path], tmp_path: Path) -> None:
    with scripted_chat(models, (GOOD, OTHER), tmp_path / "ratings.jsonl") as chat:
        pair, events = answered(chat)
    own = [event for event in events if event["side"] == 0]
    assert [event["event"] for event in own] == [*["text"] * len(GOOD), "answer", "judgments"]
    assert "".join(event["text"] for event in own[:-2]) == "".join(GOOD)
    assert own[-2]["response"] == "That sounds heavy."
    assert own[-2]["analysis"] == "She is tired."
    assert own[-1]["judgments"]["reception"]["score"] == 4.0
    assert own[-1]["judgments"]["reception"]["reason"] == "It says: That sounds heavy."
    assert own[-1]["reward"] is not None
    assert chat.names(pair) == [str(each) for each in models]


def test_a_preference_is_kept_once_and_read_by_judge_train(models: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "ratings.jsonl"
    with scripted_chat(models, (GOOD, OTHER), file) as chat:
        pair, _ = answered(chat)
        chat.keep(pair.pair_id, 1)
        chat.keep(pair.pair_id, 1)  # a double click
        with pytest.raises(DataError, match="kept already, with answer 2"):
            chat.keep(pair.pair_id, 0)
        again, _ = answered(chat)
        chat.keep(again.pair_id, 0)
    assert has_preferences(file)
    rows, _ = read_preferences(file)
    assert [row.better.sections.response for row in rows] == ["Cheer up.", "That sounds heavy."]
    assert rows[0].worse.sections.analysis == "She is tired."
    assert rows[0].better.scenario.situation == SCENARIO.situation
    assert rows[0].perspective == "reception"


def test_sides_are_shuffled_when_that_is_wanted(models: list[Path], tmp_path: Path) -> None:
    with scripted_chat(models, (GOOD, OTHER), tmp_path / "ratings.jsonl") as chat:
        orders = {tuple(chat.begin(SCENARIO, True).order) for _ in range(40)}
        assert orders == {(0, 1), (1, 0)}
        assert all(chat.begin(SCENARIO, False).order == [0, 1] for _ in range(5))
        pair = next(pair for _ in range(99) if (pair := chat.begin(SCENARIO, True)).order == [1, 0])
        assert chat.names(pair) == [str(models[1]), str(models[0])]


def test_what_cannot_be_a_rating_is_refused(models: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "ratings.jsonl"
    with scripted_chat(models, (GOOD, ("# Analysis\nNo.\n# Response\n---",)), file) as chat:
        with pytest.raises(DataError, match="no longer known"):
            chat.keep("somebody's", 0)
        pair = chat.begin(SCENARIO, False)
        with pytest.raises(DataError, match="two answers that are complete"):
            chat.keep(pair.pair_id, 0)
        for _ in range(200):
            chat.begin(SCENARIO, False)
        with pytest.raises(DataError, match="no longer known"):
            chat.keep(pair.pair_id, 0)
    assert not file.exists()
    with scripted_chat(models, (GOOD, ("\u200b",)), file) as chat:
        pair, _ = answered(chat)
        with pytest.raises(DataError, match="without a word"):
            chat.keep(pair.pair_id, 0)
    with scripted_chat(models, (GOOD, OTHER), tmp_path / "nowhere" / "ratings.jsonl") as chat:
        pair, _ = answered(chat)
        with pytest.raises(DataError, match="could not be written"):
            chat.keep(pair.pair_id, 0)
        assert pair.preferred is None


def test_a_side_that_fails_says_why_and_ends(models: list[Path], tmp_path: Path) -> None:
    with scripted_chat(models, (GOOD, GOOD), tmp_path / "ratings.jsonl", status=500) as chat:
        _, events = answered(chat)
    assert sorted((event["event"], event["side"]) for event in events) == [("failed", 0), ("failed", 1)]
    assert "out of memory" in events[0]["reason"]


def test_a_reader_who_leaves_ends_the_requests(models: list[Path], tmp_path: Path) -> None:
    async def leave() -> int:
        before = len(asyncio.all_tasks())
        pair = chat.begin(SCENARIO, False)
        events = chat.answer(pair)
        await anext(events)
        await events.aclose()
        return len(asyncio.all_tasks()) - before

    with scripted_chat(models, (GOOD * 500, GOOD * 500), tmp_path / "r.jsonl", pause_s=0.01) as chat:
        assert asyncio.run(asyncio.wait_for(leave(), 20)) == 0


def test_more_than_two_models_are_refused(models: list[Path]) -> None:
    with pytest.raises(ConfigError, match="one model or two, found 3"):
        plan_chat(load_config("local"), [str(models[0])] * 3)
