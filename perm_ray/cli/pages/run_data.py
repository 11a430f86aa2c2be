"""Read everything the report shows from a run directory into frozen values.

`perm-ray report` calls `read_run`, `page.py` makes HTML of what it returns. A run that is still going
on, crashed or was made by another version lacks some of it: `notes` then says what, in one sentence each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from perm_ray.config.load import load_config
from perm_ray.config.redact import redact_text
from perm_ray.config.schema import Config
from perm_ray.errors import DataError, UserError
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, Perspective, load_perspective
from perm_ray.runs.directory import RunDirectory
from perm_ray.tracking.answers import AnswerPair
from perm_ray.tracking.samples import RolloutRow, parse_row, read_lines
from perm_ray.tracking.summary import duration, summarise

T = TypeVar("T")

UNFINISHED = "NOT FINISHED"  # there is no summary that says how it ended


@dataclass(frozen=True, slots=True)
class PerspectiveView:
    """A perspective as the page needs it: its scale, what it reads, its part in the reward."""

    name: str
    low: float
    high: float
    reads: str
    kind: str


@dataclass(frozen=True, slots=True)
class MetricRow:
    """The first and the last value of a metric, and its mean over the steps that have it."""

    name: str
    first: float
    last: float
    mean: float | None = None


@dataclass(frozen=True)
class RunReport:
    """A run, as far as its directory tells.

    `evaluation` compares the held-out scenarios before and after training, and `difference` has mean, low,
    high and pairs of their reward, or nothing.
    """

    name: str
    path: Path
    status: str
    steps: str
    last_written: datetime | None
    essentials: tuple[tuple[str, str], ...]
    config_text: str
    metrics: tuple[MetricRow, ...]
    evaluation: tuple[MetricRow, ...]
    difference: Mapping[str, float]
    answers: tuple[AnswerPair, ...]
    rollouts: tuple[RolloutRow, ...]
    heldout: tuple[RolloutRow, ...]
    perspectives: tuple[PerspectiveView, ...]
    notes: tuple[str, ...]


def read_run(path: Path) -> RunReport:
    """Read the run at `path`. Raises `DataError` when that is not a run directory."""
    directory = RunDirectory(path)
    _require_run(directory)
    notes: list[str] = []
    config, config_text = _config(directory, notes)
    metrics = _metrics(directory, notes)
    summary = _summary(directory, len(metrics), notes)
    rollouts, heldout = _samples(directory, "step", notes), _samples(directory, "heldout", notes)
    if not rollouts:
        notes.append("There are no samples of training steps yet: nothing to read rollout by rollout.")
    evaluation, difference = _evaluation(summary, bool(heldout), notes)
    for failed in sorted(path.glob("failed_step_*.json")):
        notes.append(f"The run stopped on a step; its batch is in {failed.name}, for --replay.")
    return RunReport(
        name=path.resolve().name,
        path=path.resolve(),
        status=str(summary.get("status", UNFINISHED)),
        steps=_steps(len(metrics), config, summary.get("wall_time_s")),
        last_written=_last_written(directory),
        essentials=_essentials(config) if config else (),
        config_text=config_text,
        metrics=_metric_rows(metrics),
        evaluation=evaluation,
        difference=difference,
        answers=_answers(summary.get("answers")),
        rollouts=rollouts,
        heldout=heldout,
        perspectives=_perspectives([*rollouts, *heldout]),
        notes=tuple(notes),
    )


def _require_run(directory: RunDirectory) -> None:
    path = directory.path
    if not path.exists():
        found = "nothing there"
    elif not path.is_dir():
        found = "a file"
    elif directory.config_file.is_file() or directory.metrics_file.is_file() or directory.samples.is_dir():
        return
    else:
        found = "a folder without config.yaml, metrics.jsonl and samples/"
    raise DataError(
        f"{path} is not a run directory: found {found}; give a folder that perm-ray train made, such as "
        "runs/<name>."
    )


# ---- the files -------------------------------------------------------------------------------


def _config(directory: RunDirectory, notes: list[str]) -> tuple[Config | None, str]:
    file = directory.config_file
    if not file.is_file():
        notes.append("There is no config.yaml: the run's settings are not known.")
        return None, ""
    text = redact_text(file.read_text(encoding="utf-8", errors="replace"))
    try:
        return load_config(file), text
    except UserError as error:
        notes.append(f"The settings are shown as they stand, since config.yaml cannot be read: {error}")
        return None, text


def _metrics(directory: RunDirectory, notes: list[str]) -> list[dict[str, float]]:
    cut = " (the last one is cut short when a run is killed while it writes)"
    rows = _rows(directory, directory.metrics_file, _numbers, notes, cut)
    if not rows:
        notes.append("There are no metrics yet: no step has ended.")
    return sorted(rows, key=lambda row: row["step"])


def _samples(directory: RunDirectory, kind: str, notes: list[str]) -> tuple[RolloutRow, ...]:
    files = sorted(directory.samples.glob(f"{kind}_*.jsonl"))
    return tuple(row for file in files for row in _rows(directory, file, parse_row, notes))


def _rows(
    directory: RunDirectory,
    file: Path,
    parse: Callable[[dict[str, Any]], T],
    notes: list[str],
    why: str = "",
) -> tuple[T, ...]:
    """Read the rows of a JSONL file; lines that are none are counted in a note."""
    lines = read_lines(file, parse)
    if lines.num_bad:
        count = "one line" if lines.num_bad == 1 else f"{lines.num_bad} lines"
        name = file.relative_to(directory.path)
        notes.append(f"{name} has {count} that cannot be read{why}: left out.")
    return lines.rows


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a row of metrics: its `step` and every finite number but the time."""
    numbers = {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    numbers.pop("time_ms", None)
    return {**numbers, "step": int(row["step"])}


def _summary(directory: RunDirectory, num_steps: int, notes: list[str]) -> Mapping[str, Any]:
    file = directory.summary_file
    if not file.is_file():
        notes.append("There is no summary.json: the run is still going on, or it was cut off.")
        return {}
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        summary = None
    if not isinstance(summary, dict):
        notes.append("summary.json is not a JSON object and was left out.")
        return {}
    steps = summary.get("steps")
    if isinstance(steps, int) and num_steps > steps:
        notes.append(
            f"metrics.jsonl has {num_steps} steps and summary.json {steps}: the run was resumed and goes on, "
            "or was cut off; status and times are those of the session before."
        )
    return summary


def _answers(rows: object) -> tuple[AnswerPair, ...]:
    """Return the answers of `summary.json` from before and after, as far as they can be read."""
    if not isinstance(rows, list):
        return ()
    names = {each.name for each in fields(AnswerPair)}
    return tuple(AnswerPair(**row) for row in rows if isinstance(row, dict) and row.keys() == names)


def _last_written(directory: RunDirectory) -> datetime | None:
    files = [directory.metrics_file, directory.summary_file, directory.config_file]
    files += directory.samples.glob("*.jsonl")
    times = [file.stat().st_mtime for file in files if file.is_file()]
    return datetime.fromtimestamp(max(times), UTC) if times else None


# ---- what follows from them ------------------------------------------------------------------


def _steps(done: int, config: Config | None, wall_time_s: object) -> str:
    """Say how far the run came, such as `8 of 30 steps in 6m52s`."""
    text = f"{done} of {config.run.steps} steps" if config else f"{done} steps"
    return f"{text} in {duration(wall_time_s)}" if isinstance(wall_time_s, int | float) else text


def _metric_rows(metrics: Sequence[Mapping[str, float]]) -> tuple[MetricRow, ...]:
    spans = summarise(metrics, "FINISHED", 0.0, {})["metrics"]
    assert isinstance(spans, dict)
    return tuple(MetricRow(name, **span) for name, span in spans.items())


def _evaluation(
    summary: Mapping[str, Any], has_answers: bool, notes: list[str]
) -> tuple[tuple[MetricRow, ...], Mapping[str, float]]:
    evaluation = summary.get("evaluation")
    parts = {
        name: _numbers({**value, "step": 0}) if isinstance(value, dict) else {}
        for name, value in (evaluation if isinstance(evaluation, dict) else {}).items()
    }
    before, after = parts.get("before"), parts.get("after")
    if before and after:
        shared = [name for name in before if name in after and name != "step"]
        return tuple(MetricRow(n, before[n], after[n]) for n in shared), parts.get("difference", {})
    if has_answers:
        notes.append("There is no held-out comparison: the run did not come to its second evaluation.")
    else:
        notes.append("There are no held-out answers: the run did not evaluate, or has not come to it.")
    return (), {}


def _perspectives(rows: Sequence[RolloutRow]) -> tuple[PerspectiveView, ...]:
    """Return those that occur, in the registry's order; the scale of one it does not know is a guess."""
    names = dict.fromkeys(name for row in rows for name in row.judgments)
    ordered = dict.fromkeys([*(name for name in BUILTIN_PERSPECTIVES if name in names), *names])
    return tuple(_perspective(name, rows) for name in ordered)


def view_of(perspective: Perspective) -> PerspectiveView:
    """Return what a page needs of a perspective."""
    scale = perspective.scale
    return PerspectiveView(perspective.name, scale.low, scale.high, perspective.reads, perspective.kind)


def _perspective(name: str, rows: Sequence[RolloutRow]) -> PerspectiveView:
    if name in BUILTIN_PERSPECTIVES:
        return view_of(load_perspective(name))
    scores = [row.judgments[name].score for row in rows if name in row.judgments]
    highest = max((score for score in scores if score is not None), default=5.0)
    return PerspectiveView(name, 0.0 if highest > 5 else 1.0, max(highest, 5.0), "response", "empathy")


def _essentials(config: Config) -> tuple[tuple[str, str], ...]:
    """Return the settings that a reader asks for first; the whole configuration stands below them."""
    run, rollout, trainer, rewards = config.run, config.rollout, config.trainer, config.rewards
    objective = trainer.objective
    weights = f"LoRA, rank {trainer.lora.rank}" if trainer.lora.rank else "all weights"
    alike: dict[str, list[str]] = {}
    for name, pool in config.judges.pools.items():
        alike.setdefault(f"{config.model_of(pool).model}, {pool.scoring.mode}", []).append(name)
    judges = [("judge", f"{judge}, of {', '.join(names)}") for judge, names in alike.items()]
    return (
        ("policy", config.policy.model),
        ("trained", f"{weights}, lr {trainer.lr:g}, {trainer.schedule}"),
        ("objective", f"{objective.loss}, KL coefficient {objective.kl_coef:g}"),
        ("a step", f"{rollout.prompts_per_step} prompts x {rollout.completions_per_prompt} completions"),
        ("completions", f"up to {rollout.max_completion_tokens} tokens, temperature {rollout.temperature:g}"),
        ("reward", f"{rewards.combine} mean, {rewards.composition}"),
        *judges,
        ("training data", config.data.train),
        ("held-out data", config.data.heldout),
        ("seed", f"{run.seed}, {'deterministic' if run.deterministic else 'not deterministic'}"),
    )
