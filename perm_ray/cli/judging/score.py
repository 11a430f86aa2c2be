"""`perm-ray judge score IN.jsonl OUT.jsonl`: score texts of any origin, with PERM as a reward model.

Appends one row an item the moment it is judged. Run it again and it goes on where it stopped: rows that
are there are kept, and judged again only with --again, if they have no reward.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from perm_ray.cli.judging.judged import judged
from perm_ray.config.load import load_config
from perm_ray.config.training import RewardConfig
from perm_ray.data.items import read_items
from perm_ray.errors import DataError, JudgeFailureRateError
from perm_ray.evaluation.scored import Setup, item_fields, read_scored, resume, setup_of
from perm_ray.files import append_row, json_line
from perm_ray.judges.perspective import Perspective
from perm_ray.judges.startup import build_perspectives
from perm_ray.rewards.reward import check_perspectives, reward_of_asked
from perm_ray.rewards.score_map import ScoreMap, score_maps_for
from perm_ray.tracking.samples import judgment_row
from perm_ray.types import JudgeItem, Judgment

MAX_FAILED_IN_A_ROW = 64


def run(options: argparse.Namespace) -> int:
    """Score the items that have no row yet; 1 when none of them got a score."""
    config = load_config(options.config, options.overrides)
    check_paths(options.input, options.output)
    items = read_items(options.input)
    console = Console()
    perspectives = build_perspectives(config.judges)
    check_perspectives(perspectives, config.rewards)
    score_maps = score_maps_for(config, perspectives, [item.scenario.language for item in items])
    setup = setup_of(config, perspectives, score_maps)
    done = resume(options.output, items, setup, options.again)
    remaining = [item for item in items if item.item_id not in done]
    if done:
        console.print(f"{len(items) - len(remaining)} of {len(items)} are there already.")
    judged_nothing = bool(remaining)
    if remaining:
        outage = Outage()
        with judged(config, remaining, console) as judgments_of:
            for item, judgments in judgments_of:
                row = scored_row(item, judgments, perspectives, config.rewards, score_maps, setup)
                append_row(options.output, json_line(row))
                outage.watch(judgments)
                judged_nothing &= all(j.score is None for j in judgments.values())
    show(options.output, console)
    if judged_nothing:
        print("perm-ray judge score: no text got a score; the reasons are in the file.", file=sys.stderr)
        return 1
    return 0


class Outage:
    """Stop the verb when calls fail for so many items in a row that the judges must be gone."""

    def __init__(self) -> None:
        self._failed = 0

    def watch(self, judgments: Mapping[str, Judgment]) -> None:
        """Count an item. Raises `JudgeFailureRateError` after `MAX_FAILED_IN_A_ROW` with a failed call."""
        reasons = [f"{name}: {j.reason}" for name, j in judgments.items() if j.status == "failed"]
        self._failed = self._failed + 1 if reasons else 0
        if self._failed >= MAX_FAILED_IN_A_ROW:
            raise JudgeFailureRateError(
                f"The judges failed for {self._failed} items in a row ({'; '.join(reasons)}): mend that and "
                "run again with --again."
            )


def check_paths(source: Path, output: Path) -> None:
    """Make the output's folder. Raises `DataError` for an output that cannot be."""
    if output.is_dir():
        raise DataError(f"{output} is a folder: name a file to append to.")
    if source.exists() and output.exists() and source.samefile(output):
        raise DataError(f"{output} is the file to score: name another one for the rows.")
    output.parent.mkdir(parents=True, exist_ok=True)


def scored_row(
    item: JudgeItem,
    judgments: Mapping[str, Judgment],
    perspectives: Mapping[str, Perspective],
    rewards: RewardConfig,
    score_maps: Mapping[str, ScoreMap],
    setup: Setup,
) -> dict[str, object]:
    """Return the row of one item: its texts, judgments, reward and the perspectives that entered it."""
    reward, masked_because, asked = reward_of_asked(judgments, perspectives, rewards, score_maps)
    scales = {name: [each.scale.low, each.scale.high] for name, each in perspectives.items()}
    return {
        **item_fields(item),
        "judgments": {name: judgment_row(j) | {"scale": scales[name]} for name, j in judgments.items()},
        "reward": None if reward is None else asdict(reward),
        "perspectives": list(asked),
        "masked_because": masked_because,
        "setup": asdict(setup),
    }


def show(output: Path, console: Console) -> None:
    """Print what is in the file now: means, and how many rows have no score."""
    rows = read_scored(output)
    scores: dict[str, list[float | None]] = {"reward": [row.reward for row in rows]}
    for name in dict.fromkeys(name for row in rows for name in row.scores):
        scores[name] = [row.scores.get(name) for row in rows]
    table = Table(title=f"{len(rows)} rows in {output}", title_justify="left")
    for column in ("", "mean", "scored", "without"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in scores.items():
        known = [value for value in values if value is not None]
        mean = f"{sum(known) / len(known):.3f}" if known else "none"
        table.add_row(name, mean, str(len(known)), str(len(values) - len(known)))
    console.print(table)
    entered = Counter(row.perspectives for row in rows)
    for names, count in entered.most_common():
        console.print(f"{count} rewards are of {', '.join(names)}.", markup=False, soft_wrap=True)
