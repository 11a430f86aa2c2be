"""Read the graded answers that come with perm_ray: `builtin:graded` (a data card: `sets/GRADED.md`).

Each scenario has at least five answers of clearly different worth, each graded from every perspective with a
sentence of reason. They are what judges are trained on and held against; the best ones are demonstrations for
a policy. A quarter of the scenarios is held out: never train on those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perm_ray.data.items import make_scenario
from perm_ray.types import Scenario, Sections

GRADED_FILE = Path(__file__).parent / "sets" / "graded.jsonl"
Split = Literal["train", "heldout"]


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """One answer and its grades.

    `grades` are on the perspectives' scales (1 to 5; the bystander's 0 to 100 is the sum of `criteria`);
    `kind` says what sort of answer it was written to be.
    """

    kind: str
    sections: Sections
    grades: Mapping[str, float]
    criteria: Mapping[str, int]
    reason: str


@dataclass(frozen=True, slots=True)
class GradedScenario:
    """A scenario with its answers. `tags` are one to three words such as `loss` or `pride`."""

    graded_id: str
    split: Split
    tags: tuple[str, ...]
    scenario: Scenario
    answers: tuple[GradedAnswer, ...]


def load_graded(split: Split | None = None) -> tuple[GradedScenario, ...]:
    """Return the graded scenarios of a split, or all of them."""
    lines = GRADED_FILE.read_text(encoding="utf-8").split("\n")
    scenarios = [_scenario(json.loads(line)) for line in lines if line]
    return tuple(each for each in scenarios if split in (None, each.split))


def _scenario(row: Mapping[str, object]) -> GradedScenario:
    text = {name: str(row[name]) for name in ("persona", "scenario", "query", "language", "culture")}
    answers, tags = row["answers"], row["tags"]
    assert isinstance(answers, list)
    assert isinstance(tags, list)
    assert row["split"] in ("train", "heldout")
    scenario = make_scenario(
        text["persona"], text["scenario"], text["query"], text["language"], text["culture"]
    )
    return GradedScenario(
        graded_id=str(row["id"]),
        split="train" if row["split"] == "train" else "heldout",
        tags=tuple(map(str, tags)),
        scenario=scenario,
        answers=tuple(map(_answer, answers)),
    )


def _answer(row: Mapping[str, object]) -> GradedAnswer:
    criteria = row["bystander"]
    assert isinstance(criteria, dict)
    grades = {name: float(str(row[name])) for name in ("resonation", "expression", "reception")}
    return GradedAnswer(
        kind=str(row["kind"]),
        sections=Sections(str(row["analysis"]), str(row["response"])),
        grades={**grades, "bystander": float(sum(criteria.values()))},
        criteria=criteria,
        reason=str(row["reason"]),
    )
