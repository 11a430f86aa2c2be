"""The file that `perm-ray judge score` appends to: one JSON row an item, and what resuming needs of it.

A row holds the texts that were judged, every judgment, the reward with its parts and which perspectives
entered it, and its *setup*: who judged and how. Rows are kept for good: a file that was begun with
another setup is refused, so that scores which do not compare never share one. An item that is judged
again, because its judgments had failed, gets a second row, and the last one counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from perm_ray.config.schema import Config
from perm_ray.data.items import make_scenario
from perm_ray.data.tables import Problems, Row, json_rows
from perm_ray.errors import DataError
from perm_ray.judges.perspective import Perspective
from perm_ray.rewards.score_map import ScoreMap
from perm_ray.types import JudgeItem, Scale, Sections


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that scores depend on but the texts: `judges` names it for people, `digest` is all of it."""

    digest: str
    judges: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """A row, read back: `scores` and `scales` by perspective (a score is None where there is none);
    `perspectives` are those that entered the reward."""

    item: JudgeItem
    scores: Mapping[str, float | None]
    reasons: Mapping[str, str]
    scales: Mapping[str, Scale]
    reward: float | None
    perspectives: tuple[str, ...]
    setup: Setup


def setup_of(
    config: Config,
    perspectives: Mapping[str, Perspective],
    score_maps: Mapping[str, ScoreMap],
) -> Setup:
    """Return the setup of a configuration. What changes speed alone (replicas, timeouts) does not enter, nor
    do the settings of rewards that a text of unknown origin has no use for (length, advantages)."""
    named, whole = {}, []
    rewards = config.rewards
    for name, pool in sorted(config.judges.pools.items()):
        rubric = perspectives[name].rubric
        named[name] = f"{config.model_of(pool).model}, {pool.scoring.mode}, rubric {rubric.digest()}"
        whole.append([name, named[name], asdict(rubric), asdict(pool.scoring), pool.fence, pool.max_chars])
    maps = {name: asdict(score_map) for name, score_map in sorted(score_maps.items())}
    reward = [rewards.combine, rewards.weights, rewards.bystander_coef, maps]
    content = json.dumps([whole, reward, config.run.seed], sort_keys=True, default=list)
    return Setup(hashlib.sha256(content.encode()).hexdigest()[:12], named)


def item_fields(item: JudgeItem) -> dict[str, object]:
    """Return the texts of an item, as a row holds them (and as `items.py` reads them)."""
    scenario = item.scenario
    return {
        "id": item.item_id,
        "persona": scenario.persona,
        "scenario": scenario.situation,
        "query": scenario.query,
        "response": item.sections.response,
        "analysis": item.sections.analysis,
        "language": scenario.language,
        "culture": scenario.culture,
    }


def read_scored(path: Path) -> list[ScoredItem]:
    """Return the last row of each item. Raises one `DataError` that lists every line that is none."""
    problems = Problems()
    found = [_scored(row) for row in json_rows(path, problems)]
    problems.settle(path)
    return list({row.item.item_id: row for row in found if row is not None}.values())


def resume(path: Path, items: Sequence[JudgeItem], setup: Setup, again: bool = False) -> set[str]:
    """Return the ids that `path` already has a row of; a last line that was cut off is taken away first.

    With `again`, items without a reward do not count: they are to be judged once more. Raises `DataError`
    when the file was begun with another setup, or when the text of a row is not the text of the item with
    its id.
    """
    if not path.exists():
        return set()
    _drop_cut_line(path)
    by_id = {item.item_id: item for item in items}
    done: set[str] = set()
    for row in read_scored(path):
        name = row.item.item_id
        if row.setup.digest != setup.digest:
            raise DataError(f"{path} was begun with {_difference(row.setup, setup)}: name another file.")
        if name in by_id and by_id[name] != row.item:
            raise DataError(
                f"{path} has a row of {name} with another text than the file to score: name another file."
            )
        if row.reward is not None or not again:
            done.add(name)
    return done


def _drop_cut_line(path: Path) -> None:
    """Take away what follows the last line end: the row that was being written when something stopped."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def _difference(before: Setup, now: Setup) -> str:
    names = sorted(before.judges.keys() | now.judges.keys())
    for name in names:
        old, new = before.judges.get(name, "no judge"), now.judges.get(name, "no judge")
        if old != new:
            return f"another judge of {name} ({old}; now {new})"
    return "other judge or reward settings (such as the seed, a scoring setting or a weight)"


def _scored(row: Row) -> ScoredItem | None:
    judgments, setup = row.data.get("judgments"), row.data.get("setup")
    if not isinstance(judgments, dict) or not isinstance(setup, dict):
        row.complain("judgments", "a row of `perm-ray judge score`", judgments)
        return None
    scores: dict[str, float | None] = {}
    reasons, scales = dict[str, str](), dict[str, Scale]()
    for name, judgment in judgments.items():
        ends = judgment.get("scale") if isinstance(judgment, dict) else None
        if not isinstance(ends, list) or [type(end) for end in ends] != [int, int]:
            row.complain(f"judgments.{name}", "a judgment with its scale", judgment)
            continue
        scales[name] = Scale(*ends)
        scores[name] = row.rating(f"judgments.{name}.score", judgment.get("score"), scales[name])
        reasons[name] = str(judgment.get("reason") or "")
    reward, asked = row.data.get("reward"), row.data.get("perspectives")
    value = reward.get("value") if isinstance(reward, dict) else None
    scenario = make_scenario(
        row.text("persona"),
        row.text("scenario"),
        row.text("query"),
        row.optional_text("language"),
        row.optional_text("culture"),
    )
    sections = Sections(row.optional_text("analysis"), row.text("response"))
    return ScoredItem(
        item=JudgeItem(row.text("id"), scenario, sections),
        scores=scores,
        reasons=reasons,
        scales=scales,
        reward=float(value) if isinstance(value, int | float) else None,
        perspectives=tuple(map(str, asked)) if isinstance(asked, list) else (),
        setup=Setup(str(setup.get("digest")), dict(setup.get("judges") or {})),
    )
