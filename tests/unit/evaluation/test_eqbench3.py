"""What EQ-Bench 3's runner wrote is read as it is: what could not be parsed is counted, never scored."""

from __future__ import annotations

from pathlib import Path

import pytest

from perm_ray.errors import DataError
from perm_ray.evaluation.eqbench3 import chosen_scenarios, criteria_of, measured_scenarios, scenario_rows

PROMPTS = """# a head
######## 1 | Work
####### Prompt1
First.
####### Prompt2
Second.

######## 401 | Analysis
####### Prompt1
Third.
"""


def clone(folder: Path) -> Path:
    (folder / "data").mkdir()
    (folder / "eqbench3.py").write_text("")
    (folder / "data/scenario_prompts.txt").write_text(PROMPTS)
    (folder / "data/rubric_scoring_criteria.txt").write_text("warmth\n# no criterion\n\ninsight\n")
    (folder / "data/rubric_scoring_criteria_analysis.txt").write_text("insight\nrigour\n")
    return folder


def test_the_chosen_scenarios_alone_are_kept(tmp_path: Path) -> None:
    text, names = chosen_scenarios(clone(tmp_path), ["401"])
    assert names == ["401"]
    assert text == "# a head\n" + PROMPTS[PROMPTS.index("######## 401") :]
    assert chosen_scenarios(tmp_path, []) == (PROMPTS, ["1", "401"])
    assert criteria_of(tmp_path) == ["warmth", "insight", "rigour"]


def test_an_unknown_scenario_and_another_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(1, 401\), found 7\."):
        chosen_scenarios(clone(tmp_path), ["1", "7"])
    with pytest.raises(DataError, match=r"found no eqbench3\.py"):
        chosen_scenarios(tmp_path / "data", [])


def test_scores_lengths_and_failures_of_each_scenario() -> None:
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "three words here"}]
    scores = {"warmth": 10.0, "made up": 20.0, "insight": 99.0}
    tasks = {
        "1": {"rubric_scores": scores, "conversation_history": history},
        "2": {"rubric_scores": None, "raw_rubric_judge_text": "Lovely!", "conversation_history": history},
        "3": {"scenario_run_error": "no answer"},
    }
    rows = scenario_rows({"scenario_tasks": {"1": tasks}}, ["1", "2", "3", "4"], ["warmth", "insight"])
    assert [row["scores"] for row in rows] == [{"warmth": 10.0}, None, None, None]
    assert [row["failed"] for row in rows] == ["", "", "no answer", "the runner has no answer"]
    assert rows[1]["judge"] == "Lovely!"
    first, second, third, _ = measured_scenarios(rows)
    assert first.measures == {"parsed": 1.0, "answered": 1.0, "score": 10.0, "warmth": 10.0, "words": 3.0}
    assert second.measures == {"parsed": 0.0, "answered": 1.0, "words": 3.0}
    assert third.measures == {"parsed": 0.0, "answered": 0.0}
