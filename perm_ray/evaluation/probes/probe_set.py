"""Probes: pairs of texts that any sound judge puts in the same order, and attacks that must not pay.

They test the judges, not a policy: `perm-ray judge probe` and, during training, `ProbeWatch` have the
texts of `probe_items` judged and give the judgments to `probe_report`. The built-in set is the folder
`probes/`: `scenarios.jsonl` has the people, as any data set has them, and each line of the other files
is one probe::

    {"id": "flattery-01", "kind": "flattery", "scenario": "probe-idris",
     "perspectives": ["expression", "reception"],
     "better": {"response": "..."}, "worse": {"response": "..."}, "relation": "not_above"}

`relation` is `above` (the default: `better` scores higher than `worse`) or `not_above` (`worse` scores
at most `margin` of the scale higher than `better`: for an attack upon a text that is poor anyway).
Only the sections that the perspectives read may be there. Pure.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from perm_ray.data.scenarios import load_scenarios
from perm_ray.data.tables import Problems, json_rows
from perm_ray.errors import DataError
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, load_perspective
from perm_ray.types import JudgeItem, Scenario, Sections

Relation = Literal["above", "not_above"]

BUILTIN_PROBES = Path(__file__).parent
SCENARIOS_FILE = "scenarios.jsonl"
DEFAULT_MARGIN = 0.05  # of the scale
# A kind is part of a metric's name, beside these.
RESERVED_KINDS = ("pass_rate", "failed")

_FIELDS = {"id", "kind", "scenario", "perspectives", "better", "worse", "relation", "margin"}
_KIND = re.compile("[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Probe:
    """On each of `perspectives`, a sound judge gives `better` more than `worse` (`relation` above), or
    `worse` at most `margin` (a share of the scale) more than `better` (not_above)."""

    probe_id: str
    kind: str
    scenario: Scenario
    perspectives: tuple[str, ...]
    better: Sections
    worse: Sections
    relation: Relation = "above"
    margin: float = DEFAULT_MARGIN

    def holds(self, better: float, worse: float) -> bool:
        """Return whether the order holds; both are shares of the scale, in [0, 1]."""
        if self.relation == "above":
            return better > worse
        return worse <= better + self.margin + 1e-9  # an expected score is exact to about so much


def item_id(scenario: Scenario, sections: Sections) -> str:
    """Return the id under which this text is judged: the same for the same text to the same person."""
    said = json.dumps([scenario.scenario_id, sections.analysis, sections.response])
    return f"{scenario.scenario_id}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"


def probe_items(probes: Iterable[Probe]) -> tuple[JudgeItem, ...]:
    """Return every text of `probes` to be judged, each distinct one once, in the order of the probes."""
    items: dict[str, JudgeItem] = {}
    for probe in probes:
        for sections in (probe.better, probe.worse):
            key = item_id(probe.scenario, sections)
            items.setdefault(key, JudgeItem(key, probe.scenario, sections))
    return tuple(items.values())


def load_probes(folder: Path = BUILTIN_PROBES) -> tuple[Probe, ...]:
    """Return the probes of every JSONL file of `folder`, which has the people in `scenarios.jsonl`.

    Raises one `DataError` that names every bad line (at most 20 are shown).
    """
    scenarios = {each.scenario_id: each for each in load_scenarios(str(folder / SCENARIOS_FILE))}
    reads = {name: load_perspective(name).reads for name in BUILTIN_PERSPECTIVES}
    files = [file for file in sorted(folder.glob("*.jsonl")) if file.name != SCENARIOS_FILE]
    problems, ids, probes = Problems(), set[str](), list[Probe]()
    for row in itertools.chain.from_iterable(json_rows(file, problems) for file in files):
        try:
            probes.append(_probe(row.data, scenarios, reads, ids))
        except _BadLine as error:
            row.complain(*error.args)
    problems.settle(folder)
    if not probes:
        raise DataError(f"{folder} has no probes: give a folder with {SCENARIOS_FILE} and a file of probes.")
    return tuple(probes)


# ---- reading --------------------------------------------------------------------------------


class _BadLine(Exception):
    """A line that is no probe: the field, what was expected, what was found."""


def _probe(
    fields: Mapping[str, object], scenarios: Mapping[str, Scenario], reads: Mapping[str, str], ids: set[str]
) -> Probe:
    unknown = sorted(fields.keys() - _FIELDS)
    _expect(not unknown, "", f"only the fields {', '.join(sorted(_FIELDS))}", ", ".join(unknown))
    probe_id = fields.get("id")
    _expect(isinstance(probe_id, str) and bool(probe_id), "id", "a text", probe_id)
    _expect(probe_id not in ids, "id", "an id of its own", probe_id)
    ids.add(cast(str, probe_id))
    kind = fields.get("kind")
    named = isinstance(kind, str) and bool(_KIND.fullmatch(kind)) and kind not in RESERVED_KINDS
    _expect(named, "kind", f"lower-case letters, digits and _, not {' or '.join(RESERVED_KINDS)}", kind)
    scenario = fields.get("scenario")
    known = isinstance(scenario, str) and scenario in scenarios
    _expect(known, "scenario", f"the id of a line of {SCENARIOS_FILE}", scenario)
    perspectives = _perspectives(fields.get("perspectives"), reads)
    relation = fields.get("relation", "above")
    _expect(relation in ("above", "not_above"), "relation", '"above" or "not_above"', relation)
    _expect("margin" not in fields or relation == "not_above", "margin", "none with above", "one")
    margin = fields.get("margin", DEFAULT_MARGIN)
    number = isinstance(margin, int | float) and not isinstance(margin, bool) and 0 <= margin < 1
    _expect(number, "margin", "a number in [0, 1)", margin)
    needed = {reads[name] for name in perspectives}
    better = _sections("better", fields.get("better"), needed)
    worse = _sections("worse", fields.get("worse"), needed)
    blank = [text for text in (better.analysis, better.response) if text is not None and not text.strip()]
    _expect(not blank, "better", "texts with something in them", blank)
    _expect(better != worse, "worse", "another text than better", "the same")
    return Probe(
        probe_id=cast(str, probe_id),
        kind=cast(str, kind),
        scenario=scenarios[cast(str, scenario)],
        perspectives=perspectives,
        better=better,
        worse=worse,
        relation=cast(Relation, relation),
        margin=float(cast(float, margin)),
    )


def _perspectives(names: object, reads: Mapping[str, str]) -> tuple[str, ...]:
    expected = f"a list of some of {', '.join(reads)}, each once"
    _expect(isinstance(names, list) and bool(names), "perspectives", expected, names)
    found = cast(list[object], names)
    right = all(isinstance(name, str) and name in reads for name in found)
    _expect(right and len({*map(str, found)}) == len(found), "perspectives", expected, names)
    return tuple(cast(list[str], found))


def _expect(right: bool, where: str, expected: str, found: object) -> None:
    if not right:
        raise _BadLine(where, expected, found)


def _sections(where: str, value: object, needed: set[str]) -> Sections:
    """Return the texts under `where`: those that the probe's perspectives read, no others."""
    expected = f"an object with {' and '.join(sorted(needed))} (what its perspectives read), each a text"
    found = cast(Mapping[str, object], value) if isinstance(value, dict) else {}
    right = found.keys() == needed and all(isinstance(text, str) for text in found.values())
    _expect(right, where, expected, value)
    texts = cast(Mapping[str, str], found)
    return Sections(texts.get("analysis"), texts.get("response"))
