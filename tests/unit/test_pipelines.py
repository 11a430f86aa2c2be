"""The recipes import, and the two readers of public sets write rows that calibration reads."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from perm_ray.evaluation.calibration.labels import read_labels

FOLDER = Path(__file__).parents[2] / "pipelines"
RECIPES = sorted(file.stem for file in FOLDER.glob("*.py"))
TALK = """Seeker: I lost my job.
Supporter: Oh no.
When?
Seeker: Today: at nine.
Supporter: I am sorry.
Seeker: Yes."""


def recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(path: Path, columns: Sequence[str], *rows: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def written(tmp_path: Path, rows: Sequence[dict]) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_says_how_to_run_it_and_is_in_the_list(name: str) -> None:
    assert f"pipelines/{name}.py" in (recipe(name).__doc__ or "")
    assert f"({name}.py)" in (FOLDER / "README.md").read_text()
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= 80


def test_epitome_joins_its_files_and_takes_the_mean_of_doubles(tmp_path: Path) -> None:
    columns = ("sp_id", "rp_id", "seeker_post", "response_post", "level", "rationales")
    files = {
        "emotional-reactions": [("r1", 2), ("r2", 0), ("r2", 1)],
        "explorations": [("r2", 1), ("r1", 0)],
    }
    for name, levels in files.items():
        rows = [["s1", reply, "I feel\nlost.", f"Reply {reply}.", level, ""] for reply, level in levels]
        table(tmp_path / "data" / f"{name}-reddit.csv", columns, *rows)
    own = {"emotional_reactions": "expression", "explorations": "reception"}
    found = read_labels(written(tmp_path, recipe("epitome").rows(tmp_path / "data")), own)
    assert [row.item.item_id for row in found.items] == ["s1:r1", "s1:r2"]
    assert found.items[1].labels == {
        "emotional_reactions": {"annotators": 0.5},
        "explorations": {"annotators": 1},
    }
    assert found.items[0].item.scenario.query == "I feel\nlost."


def test_lend_an_ear_keeps_people_and_models_apart(tmp_path: Path) -> None:
    lend_an_ear = recipe("lend_an_ear")
    talks = [[f"2024{i}", TALK.replace("job", f"job {i}"), 80] for i in range(3)]
    columns = ("conversation_id", "full_conversation", "response_length")
    table(tmp_path / "original_data" / "sample_lend_an_ear_conversations.csv", columns, *talks)
    raters = {
        "expert1": [[1, 2, 3, 4, 5, 1], [2, 2, 2, 2, 2, ""]],
        "crowd": [[1.5, 2, 3, 4, 5, 2.25]],
        "gpt": [["1.0", 2, 3, 4, 5, 5]],
    }
    for rater, rows in raters.items():
        file = tmp_path / "annotations" / "lend_an_ear" / f"{rater}_ratings.csv"
        named = ("", "conversation_id", *lend_an_ear.DIMENSIONS)
        table(file, named, *[[i, f"2024{i}", *row] for i, row in enumerate(rows)])
    own = {"validating_emotions": "expression", "dismissing_emotions": "-reception"}
    found = read_labels(written(tmp_path, lend_an_ear.rows(tmp_path)), own)
    assert found.raters("validating_emotions") == ("crowd", "expert1")
    assert found.raters("validating_emotions", models=True) == ("gpt",)
    assert found.items[0].labels["dismissing_emotions"] == {"crowd": 3.75, "expert1": 5}
    assert not found.items[1].labels["dismissing_emotions"], "a blank is no rating"
    item = found.items[0].item
    assert item.scenario.query == "I lost my job 0."
    assert item.sections.response == "1. Oh no.\nWhen?\n2. I am sorry."
    assert item.scenario.situation.endswith("went on:\n1. Today: at nine.\n2. Yes.")
