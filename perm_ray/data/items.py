"""Texts to judge, from a JSONL file: `perm-ray judge score` reads it, and labels come on the same rows.

One row is one JSON object on one line::

    {"id": "a-1", "persona": "Ana, 41, a nurse", "scenario": "She was passed over for head nurse.",
     "query": "I should be happy for Rui.", "response": "...", "analysis": "...",
     "language": "en", "culture": "Portuguese"}

`persona` is a text, or an object of which `identity` is read. Instead of `query` there may be a
`dialogue`, a list of turns (texts, or objects with `role` and `content`), whose first turn is the
seeker's and is the query. `response` is what was answered. `analysis` (what the supporter understood)
may be missing: the perspective that reads it is then skipped. So may `id`, `language` and `culture`.
Other fields are let through unread, but not one that looks like a misspelt field of these.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from perm_ray.data.prompts import is_empty
from perm_ray.data.scenarios import persona_of
from perm_ray.data.tables import Problems, Row, json_rows
from perm_ray.errors import DataError
from perm_ray.types import JudgeItem, Scenario, Sections, Turn

FIELDS = ("id", "persona", "scenario", "query", "dialogue", "response", "analysis", "language", "culture")


def read_items(path: Path) -> list[JudgeItem]:
    """Return the items of a JSONL file, in file order. Raises one `DataError` that lists every problem."""
    problems = Problems()
    items = []
    lines: dict[str, int] = {}
    for row in json_rows(path, problems):
        item = item_of(row, FIELDS)
        row.check_unique(item.item_id, lines)
        items.append(item)
    problems.settle(path)
    if not items:
        raise DataError(f"{path} has no rows: give a JSONL file with at least one.")
    return items


@dataclass(frozen=True, slots=True)
class ExampleRows:
    """Rows to learn from, and which scenarios are only to measure, where the rows say it (`split`).

    `splits` has `train` or `heldout` by scenario id; it is empty when no row says it.
    """

    items: tuple[JudgeItem, ...]
    splits: Mapping[str, str]


def read_examples(path: Path) -> ExampleRows:
    """Return the rows of a JSONL file with their splits.

    Raises:
        DataError: It lists every problem, also a scenario that is in both splits.
    """
    problems = Problems()
    items, splits = [], dict[str, str]()
    lines: dict[str, int] = {}
    for row in json_rows(path, problems):
        item = item_of(row, (*FIELDS, "split"))
        row.check_unique(item.item_id, lines)
        items.append(item)
        _note_split(row, item, splits)
    problems.settle(path)
    if not items:
        raise DataError(f"{path} has no rows: give a JSONL file with at least one.")
    return ExampleRows(tuple(items), splits)


@dataclass(frozen=True, slots=True)
class Preference:
    """Two replies to one scenario, of which people prefer `better`, as `perspective` sees it."""

    better: JudgeItem
    worse: JudgeItem
    perspective: str


def has_preferences(path: Path) -> bool:
    """Return whether the rows are pairs, as the first one says."""
    return any("better" in row.data for row in itertools.islice(json_rows(path, Problems()), 1))


def read_preferences(path: Path) -> tuple[list[Preference], dict[str, str]]:
    """Return the pairs of a JSONL file, and the splits of their scenarios as `read_examples` does.

    A row has persona, scenario and query, `better` and `worse` (objects with `response` and, where the
    perspective reads it, `analysis`) and the `perspective` that prefers, `reception` as a rule.

    Raises:
        DataError: It lists every problem.
    """
    problems = Problems()
    pairs, splits = [], dict[str, str]()
    for row in json_rows(path, problems):
        sides = []
        for side in ("better", "worse"):
            given = row.data.get(side)
            if not isinstance(given, dict):
                row.complain(side, "an object with a response", given)
                given = {"response": "-"}
            own = {key: value for key, value in row.data.items() if key not in ("better", "worse")}
            joined = replace(row, data={**own, **given, "id": f"{row.line}/{side}"})
            sides.append(item_of(joined, (*FIELDS, "split", "perspective")))
        pairs.append(Preference(*sides, perspective=row.optional_text("perspective") or "reception"))
        _note_split(row, sides[0], splits)
    problems.settle(path)
    return pairs, splits


def _note_split(row: Row, item: JudgeItem, splits: dict[str, str]) -> None:
    split = row.optional_text("split")
    if split is None:
        return
    if split not in ("train", "heldout"):
        row.complain("split", "train or heldout", split)
    elif (earlier := splits.setdefault(item.scenario.scenario_id, split)) != split:
        row.complain("split", f"{earlier}, as earlier rows of this scenario", split)


def item_of(row: Row, fields: Collection[str]) -> JudgeItem:
    """Return the item of one row; problems are noted in it. `fields` are the names that may be misspelt."""
    for name in row.data:
        near = difflib.get_close_matches(name.lower(), fields, n=1, cutoff=0.75)
        if name not in fields and near and near[0] not in row.data:
            row.complain(name, f'the field "{near[0]}"', "a name that is not read")
    scenario = make_scenario(
        persona=persona_of(row),
        situation=row.text("scenario"),
        query=_query(row),
        language=row.optional_text("language"),
        culture=row.optional_text("culture"),
    )
    sections = Sections(analysis=row.optional_text("analysis"), response=row.text("response"))
    if sections.response and is_empty(sections.response):
        row.complain("response", "a text with something to read", "nothing that a reader sees")
    if sections.analysis is not None and is_empty(sections.analysis):
        sections = Sections(None, sections.response)
    return JudgeItem(row.optional_text("id") or f"{row.file.stem}:{row.line}", scenario, sections)


def make_scenario(
    persona: str, situation: str, query: str, language: str | None = None, culture: str | None = None
) -> Scenario:
    """Return a scenario that is named by its content: replies to the same query are a group to the judges."""
    content = json.dumps([persona, situation, query, language, culture]).encode()
    name = hashlib.sha256(content).hexdigest()[:12]
    return Scenario(name, persona, situation, (Turn("seeker", query),), language, culture)


def _query(row: Row) -> str:
    dialogue = row.data.get("dialogue")
    if dialogue is None:
        return row.text("query")
    if row.data.get("query") is not None:
        row.complain("dialogue", "either query or dialogue", "both of them")
        return ""
    if not isinstance(dialogue, list) or not dialogue:
        row.complain("dialogue", "a list of turns", dialogue)
        return ""
    first = dialogue[0]
    if isinstance(first, dict):
        if first.get("role", "seeker") != "seeker":
            row.complain("dialogue[0].role", "the seeker to speak first", first.get("role"))
        return row.as_text("dialogue[0].content", first.get("content"))
    return row.as_text("dialogue[0]", first)
