"""Write every rollout of a step as one JSON row (`samples/step_000001.jsonl`), and read the rows back.

A psychologist asks here why a judge gave a 2; an engineer, why a rollout was masked. The report, MLflow's
traces and tables and the choice of what people are shown are all made of these rows: `RolloutRow` is the one
form of a rollout outside the process, and `rollout_row` and `read_lines` its only codec.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import FiniteFloat, TypeAdapter

from perm_ray.config.redact import redact_text
from perm_ray.files import jsonable
from perm_ray.tracking.ambiguous import AmbiguityRule
from perm_ray.types import Judgment, Message, Prompt, Reward, Rollout, RolloutGroup

T = TypeVar("T")


@dataclass(frozen=True)
class RolloutRow:
    """One judged completion as it is written down.

    `reward` is None where the rollout is masked; `tokens` counts the completion's, `prompt_tokens` the
    prompt's. Rows of versions before 0.2 lack persona, scenario and query.
    """

    step: int
    scenario_id: str
    index: int
    language: str | None
    culture: str | None
    prompt: tuple[Message, ...]
    completion: str
    analysis: str | None
    response: str | None
    judgments: Mapping[str, Judgment]
    reward: Reward | None
    masked: bool
    masked_because: str
    ambiguous: tuple[str, ...]
    advantage: FiniteFloat | None
    version: int
    finish_reason: str
    tokens: int
    prompt_tokens: int = 0
    persona: str = ""
    scenario: str = ""
    query: str = ""


def rollout_row(
    step: int, prompt: Prompt, rollout: Rollout, advantage: float, ambiguous: Sequence[str]
) -> RolloutRow:
    """Return the row of a rollout, without secrets: a server may echo what it was sent."""
    completion, scenario = rollout.completion, prompt.scenario
    return RolloutRow(
        step=step,
        scenario_id=completion.scenario_id,
        index=completion.index,
        language=scenario.language,
        culture=scenario.culture,
        prompt=prompt.messages,
        completion=completion.text,
        analysis=rollout.sections.analysis,
        response=rollout.sections.response,
        judgments={name: _for_people(judgment) for name, judgment in rollout.judgments.items()},
        reward=rollout.reward,
        masked=rollout.masked,
        masked_because=redact_text(rollout.masked_because),
        ambiguous=tuple(ambiguous),
        advantage=advantage,
        version=completion.version,
        finish_reason=str(completion.finish_reason),
        tokens=len(completion.token_ids),
        prompt_tokens=len(prompt.token_ids),
        persona=scenario.persona,
        scenario=scenario.situation,
        query=scenario.query,
    )


def sample_rows(step: int, groups: Sequence[RolloutGroup], rule: AmbiguityRule) -> list[RolloutRow]:
    """Return one row for every rollout, in the order of the groups."""
    return [
        rollout_row(step, group.prompt, rollout, advantage, rule.reasons(rollout))
        for group in groups
        for rollout, advantage in zip(group.rollouts, group.advantages, strict=True)
    ]


def ambiguous_rows(step: int, groups: Sequence[RolloutGroup], rule: AmbiguityRule) -> list[RolloutRow]:
    """Return the rows of the most ambiguous rollouts, most ambiguous first."""
    ambiguous = [
        (rule.strength(rollout), rollout_row(step, group.prompt, rollout, advantage, reasons))
        for group in groups
        for rollout, advantage in zip(group.rollouts, group.advantages, strict=True)
        if (reasons := rule.reasons(rollout))
    ]
    ambiguous.sort(key=lambda entry: -entry[0])
    return [row for _, row in ambiguous[: rule.config.list_size]]


def judgment_row(judgment: Judgment) -> dict[str, Any]:
    """Return a judgment as JSON has it."""
    return _adapter(Judgment).dump_python(_for_people(judgment), mode="json")


def plain_row(row: RolloutRow) -> dict[str, object]:
    """Return a row as JSON has it; a number that is not finite becomes null."""
    plain = jsonable(_adapter(RolloutRow).dump_python(row, mode="json"))
    assert isinstance(plain, dict)
    return plain


def parse_row(row: Mapping[str, Any]) -> RolloutRow:
    """Return the row of a line of `samples/step_*.jsonl` or `samples/heldout_*.jsonl`.

    Raises:
        ValueError: It is not one.
    """
    named = {name: {"perspective": name, **judgment} for name, judgment in row["judgments"].items()}
    return _adapter(RolloutRow).validate_python({**row, "judgments": named})


@dataclass(frozen=True, slots=True)
class Lines(Generic[T]):
    """The rows of one JSONL file, and how many of its lines are none: a kill cuts the last one short."""

    rows: tuple[T, ...]
    num_bad: int


def read_lines(path: Path, parse: Callable[[dict[str, Any]], T]) -> Lines[T]:
    """Read every line that is a whole JSON object of the expected form; a missing file has none."""
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


def _for_people(judgment: Judgment) -> Judgment:
    rounded = tuple(round(p, 6) for p in judgment.distribution)
    return replace(judgment, distribution=rounded, reason=redact_text(judgment.reason))


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)
