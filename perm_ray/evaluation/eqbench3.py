"""Read what EQ-Bench 3's official runner wrote (github.com/EQ-bench/eqbench3). Pure.

The runner scores each scenario by criteria from 0 to 20. One whose judgment cannot be parsed has no scores:
it is counted (`parsed` is 0), never scored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from perm_ray.errors import DataError
from perm_ray.evaluation.model_comparison import Measured

RUNNER, SCENARIOS = "eqbench3.py", Path("data/scenario_prompts.txt")
BOARD_JUDGE = "claude-3.7-sonnet"  # of the public board
_CRITERIA = ("data/rubric_scoring_criteria.txt", "data/rubric_scoring_criteria_analysis.txt")
_HIGHEST = 20.0


def split_scenarios(text: str) -> tuple[str, dict[str, str]]:
    """Return what stands before the first scenario of the prompts' file, and each scenario's text by id."""
    head, *parts = re.split(r"(?m)^(?=########[ \t]*[^\s#])", text)
    found = {}
    for part in parts:
        name = part.removeprefix("########").split()[0]
        found[name] = part
    return head, found


def chosen_scenarios(clone: Path, names: Sequence[str]) -> tuple[str, list[str]]:
    """Return the prompts' file with these scenarios alone, and their ids; of none given, all.

    Raises:
        DataError: The folder is no clone of the runner, or has no such scenario.
    """
    missing = [name for name in (RUNNER, str(SCENARIOS), *_CRITERIA) if not (clone / name).is_file()]
    if missing:
        raise DataError(
            f"--eqbench-dir must be a clone of github.com/EQ-bench/eqbench3, found no {missing[0]} in "
            f"{clone}: clone it, and give its folder."
        )
    head, scenarios = split_scenarios((clone / SCENARIOS).read_text(encoding="utf-8"))
    unknown = [name for name in names if name not in scenarios]
    if unknown or not scenarios:
        raise DataError(
            f"--scenarios must be ids of {clone / SCENARIOS} ({', '.join(scenarios)}), found "
            f"{', '.join(unknown) or 'none in the file'}."
        )
    kept = list(names) or list(scenarios)
    return "".join([head, *(scenarios[name] for name in kept)]), kept


def criteria_of(clone: Path) -> list[str]:
    """Return the names of all criteria."""
    lines = [line for name in _CRITERIA for line in (clone / name).read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("#")))


def scenario_rows(
    run: Mapping[str, Any], scenarios: Sequence[str], criteria: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row a scenario: its scores by criterion (null where none could be parsed), and its lengths.

    Args:
        run: The run's entry in the runner's file.
        scenarios: The ids of all that were asked; one that the runner has nothing of `failed`.
        criteria: Names that the judge was asked for; others that it made up are left out.
    """
    tasks = run.get("scenario_tasks", {}).get("1", {})
    return [_row(name, tasks.get(name) or {}, criteria) for name in scenarios]


def measured_scenarios(rows: Sequence[Mapping[str, Any]]) -> list[Measured]:
    """Return the rows as measures: criteria and their mean as `score`, `parsed`, `answered`, `words`."""
    found = []
    for row in rows:
        scores = row["scores"] or {}
        measures = {"parsed": float(bool(scores)), "answered": float(not row["failed"])}
        if scores:
            measures |= {"score": fmean(scores.values()), **scores}
        if row["words"]:
            measures["words"] = fmean(row["words"])
        found.append(Measured(row["scenario"], (), measures))
    return found


def _row(name: str, task: Mapping[str, Any], criteria: Sequence[str]) -> dict[str, Any]:
    given = task.get("rubric_scores") or {}
    scores = {key: given[key] for key in criteria if 0 <= given.get(key, -1) <= _HIGHEST}
    turns = [turn for turn in task.get("conversation_history") or [] if turn.get("role") == "assistant"]
    error = task.get("scenario_run_error") or task.get("debrief_run_error")
    return {
        "scenario": name,
        "scores": scores or None,
        "words": [len(str(turn.get("content", "")).split()) for turn in turns],
        "failed": str(error or ("" if turns else "the runner has no answer")),
        "judge": task.get("raw_rubric_judge_text"),
    }
