"""The answers that are shown before and after: the same scenarios, by the seed, whole."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from perm_ray.files import write_jsonl_atomic
from perm_ray.tracking.answers import answer_pairs, print_answers
from perm_ray.tracking.samples import RolloutRow, plain_row
from perm_ray.types import Reward

ROW = RolloutRow(
    step=0,
    scenario_id="s-0",
    index=0,
    language=None,
    culture=None,
    prompt=(),
    completion="",
    analysis=None,
    response=None,
    judgments={},
    reward=Reward(0.25, 0.5, -0.25, 0.0),
    masked=False,
    masked_because="",
    ambiguous=(),
    advantage=0.0,
    version=0,
    finish_reason="stop",
    tokens=3,
)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    for step in (0, 8):
        rows = [
            replace(
                ROW, scenario_id=f"s-{n}", index=i, query=f"query {n}", completion=f"[b]{step}/{n}/{i}[/b]"
            )
            for n in range(9)
            for i in range(2)
        ]
        write_jsonl_atomic(tmp_path / f"heldout_{step:06d}.jsonl", map(plain_row, rows))
    return tmp_path


def test_the_seed_draws_the_same_scenarios_before_and_after(samples: Path) -> None:
    pairs = answer_pairs(samples, last_step=8, seed=1)
    assert len({pair.scenario_id for pair in pairs}) == 5
    for pair in pairs:
        number = pair.scenario_id.removeprefix("s-")
        assert (pair.before, pair.after) == (f"[b]0/{number}/0[/b]", f"[b]8/{number}/0[/b]")
    assert pairs == answer_pairs(samples, last_step=8, seed=1)
    assert pairs != answer_pairs(samples, last_step=8, seed=2)


def test_no_evaluation_gives_no_answers(tmp_path: Path) -> None:
    assert answer_pairs(tmp_path, last_step=8, seed=1) == []


def test_answers_are_printed_as_they_are(samples: Path) -> None:
    console = Console(file=io.StringIO(), width=40)
    print_answers(answer_pairs(samples, last_step=8, seed=1)[:1], console)
    printed = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "before (reward +0.25)" in printed
    assert "[b]8/" in printed
