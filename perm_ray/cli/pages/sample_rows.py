"""Rows of `samples/*.jsonl` as typed values: what `tracking/samples.py` wrote, read back.

A run that was killed, or that is still writing, has lines that are no rows: they are counted, not raised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from perm_ray.types import Judgment, Message, Reward, Status, TokenUsage

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One rollout as it was written down. `reward` is None where it is masked."""

    step: int
    scenario_id: str
    index: int
    language: str | None
    culture: str | None
    messages: tuple[Message, ...]
    completion: str
    analysis: str | None
    response: str | None
    judgments: Mapping[str, Judgment]
    reward: Reward | None
    masked_because: str
    ambiguous: tuple[str, ...]
    advantage: float
    version: int
    finish_reason: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Lines:
    """The rows of one JSONL file, and how many of its lines are none."""

    rows: tuple[Any, ...]
    num_bad: int


def read_lines(path: Path, parse: Callable[[dict[str, Any]], T]) -> Lines:
    """Every line that is a whole JSON object of the expected form; a missing file has none."""
    if not path.is_file():
        return Lines((), 0)
    rows: list[T] = []
    num_bad = 0
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise TypeError(type(value).__name__)
                rows.append(parse(value))
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
                num_bad += bool(line.strip())
    return Lines(tuple(rows), num_bad)


def metrics_row(row: dict[str, Any]) -> dict[str, float]:
    """A line of `metrics.jsonl`: its `step` and every finite number."""
    numbers = {name: float(value) for name, value in row.items() if _is_number(value)}
    numbers["step"] = int(row["step"])
    return numbers


def sample_row(row: dict[str, Any]) -> SampleRow:
    """A line of `samples/step_*.jsonl` or `samples/heldout_*.jsonl`."""
    reward = row["reward"]
    return SampleRow(
        step=int(row["step"]),
        scenario_id=str(row["scenario_id"]),
        index=int(row["index"]),
        language=_text_or_none(row["language"]),
        culture=_text_or_none(row["culture"]),
        messages=tuple(Message(str(each["role"]), str(each["content"])) for each in row["prompt"]),
        completion=str(row["completion"]),
        analysis=_text_or_none(row["analysis"]),
        response=_text_or_none(row["response"]),
        judgments={str(name): _judgment(name, value) for name, value in row["judgments"].items()},
        reward=None
        if reward is None
        else Reward(
            value=_number(reward["value"]),
            empathy=_number(reward["empathy"]),
            bystander=_number(reward["bystander"]),
            length=_number(reward["length"]),
        ),
        masked_because=str(row["masked_because"]),
        ambiguous=tuple(map(str, row["ambiguous"])),
        advantage=_number(row["advantage"]),
        version=int(row["version"]),
        finish_reason=str(row["finish_reason"]),
        tokens=int(row["tokens"]),
    )


def _judgment(name: str, row: dict[str, Any]) -> Judgment:
    tokens = row["tokens"]
    return Judgment(
        perspective=name,
        status=Status(row["status"]),
        score=_number_or_none(row["score"]),
        sampled=_number_or_none(row["sampled"]),
        mass=_number_or_none(row["mass"]),
        distribution=tuple(_number(value) for value in row["distribution"]),
        entropy=_number_or_none(row["entropy"]),
        spread=_number_or_none(row["spread"]),
        criteria={str(key): _number(value) for key, value in row["criteria"].items()},
        reason=str(row["reason"]),
        tries=int(row["tries"]),
        latency_s=_number(row["latency_s"]),
        tokens=TokenUsage(int(tokens["prompt"]), int(tokens["cached"]), int(tokens["completion"])),
        judge=str(row["judge"]),
        rubric_digest=str(row["rubric_digest"]),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a finite number, found {value!r}")
    return float(value)


def _number_or_none(value: object) -> float | None:
    return None if value is None else _number(value)


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)
