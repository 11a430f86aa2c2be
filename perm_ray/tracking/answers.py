"""Choose held-out answers from before and after training, to be read side by side, as they are.

A number says that judges gave more; only the answers say what was learned. They are chosen by a rule, the
run's seed, never by hand.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from perm_ray.tracking.samples import RolloutRow, parse_row, read_lines

NUM_SHOWN = 5


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """Two answers of a policy to one scenario: whole completions, and their rewards (None: masked)."""

    scenario_id: str
    query: str
    before: str
    after: str
    reward_before: float | None
    reward_after: float | None


def answer_pairs(samples: Path, last_step: int, seed: int, count: int = NUM_SHOWN) -> list[AnswerPair]:
    """Return `count` held-out scenarios' first answers, before training and after `last_step`.

    Args:
        samples: The folder `samples/` of a run.
        last_step: The step after which the second evaluation was made.
        seed: That of the run, by which the scenarios are drawn.
        count: How many; fewer where the run evaluated fewer.
    """
    before, after = (_first_answers(samples / f"heldout_{step:06d}.jsonl") for step in (0, last_step))
    shared = sorted(before.keys() & after.keys())
    chosen = random.Random(f"answers/{seed}").sample(shared, min(count, len(shared)))
    return [_pair(before[name], after[name]) for name in chosen]


def print_answers(pairs: Sequence[AnswerPair], console: Console) -> None:
    """Print the answers one under the other, as they are."""
    if not pairs:
        return
    console.print(f"\n{len(pairs)} held-out answers, drawn by the seed:", markup=False, highlight=False)
    for pair in pairs:
        for label, text, reward in (
            ("said", pair.query, None),
            ("before", pair.before, pair.reward_before),
            ("after", pair.after, pair.reward_after),
        ):
            head = label if reward is None else f"{label} (reward {reward:+.2f})"
            console.print(f"\n[{pair.scenario_id}] {head}:", markup=False, highlight=False)
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def _first_answers(file: Path) -> dict[str, RolloutRow]:
    rows = read_lines(file, parse_row).rows
    return {row.scenario_id: row for row in reversed(rows)}


def _pair(before: RolloutRow, after: RolloutRow) -> AnswerPair:
    rewards = [None if row.reward is None else row.reward.value for row in (before, after)]
    return AnswerPair(
        before.scenario_id, before.query, before.completion, after.completion, rewards[0], rewards[1]
    )
