"""Everything the report shows, read from a run directory into frozen values.

`perm-ray report` calls `read_run`, `page.py` makes HTML of what it returns. A run that is still going
on, crashed or was made by another version lacks some of it: `notes` then says what, in one sentence each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perm_ray.config.load import load_config
from perm_ray.config.redact import redact_text
from perm_ray.config.schema import Config
from perm_ray.errors import DataError, UserError
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, load_perspective
from perm_ray.runs.directory import RunDirectory
from perm_ray.tracking.samples import RolloutRow, parse_row, read_lines
from perm_ray.tracking.summary import duration, summarise

UNFINISHED = "NOT FINISHED"  # there is no summary that says how it ended


@dataclass(frozen=True, slots=True)
class PerspectiveView:
    """What the page needs to know of a perspective: its scale, what it reads, its part in the reward."""

    name: str
    low: float
    high: float
    reads: str
    kind: str


@dataclass(frozen=True, slots=True)
class Span:
    """Where a metric began and ended, and its mean over the steps that have it."""

    name: str
    first: float
    last: float
    mean: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The held-out comparison of `summary.json`; `difference` has mean, low, high and pairs, or nothing."""

    before: Mapping[str, float]
    after: Mapping[str, float]
    difference: Mapping[str, float]


@dataclass(frozen=True)
class RunReport:
    """A run, as far as its directory tells. Metrics rows and probes are in step order, each with `step`."""

    name: str
    path: Path
    status: str
    steps_planned: int | None
    wall_time_s: float | None
    last_written: datetime | None
    essentials: tuple[tuple[str, str], ...]
    config_text: str
    metrics: tuple[Mapping[str, float], ...]
    spans: tuple[Span, ...]
    evaluation: Evaluation | None
    probes: tuple[Mapping[str, float], ...]
    rollouts: tuple[RolloutRow, ...]
    heldout: Mapping[int, tuple[RolloutRow, ...]]
    perspectives: tuple[PerspectiveView, ...]
    notes: tuple[str, ...]


def read_run(path: Path) -> RunReport:
    """The run at `path`. Raises `DataError` when that is not a run directory."""
    directory = RunDirectory(path)
    _require_run(directory)
    notes: list[str] = []
    config, config_text = _config(directory, notes)
    metrics = _metrics(directory, notes)
    summary = _summary(directory, len(metrics), notes)
    rollouts = _samples(directory, "step", notes)
    heldout = _heldout(directory, notes)
    for failed in sorted(path.glob("failed_step_*.json")):
        notes.append(f"The run stopped on a step; its batch is in {failed.name}, for --replay.")
    wall_time_s = summary.get("wall_time_s")
    everything = [*rollouts, *(row for rows in heldout.values() for row in rows)]
    return RunReport(
        name=path.resolve().name,
        path=path.resolve(),
        status=str(summary.get("status", UNFINISHED)),
        steps_planned=config.run.steps if config else None,
        wall_time_s=float(wall_time_s) if isinstance(wall_time_s, int | float) else None,
        last_written=_last_written(directory),
        essentials=_essentials(config) if config else (),
        config_text=config_text,
        metrics=metrics,
        spans=_spans(metrics),
        evaluation=_evaluation(summary, heldout, notes),
        probes=_probes(directory, notes),
        rollouts=rollouts,
        heldout=heldout,
        perspectives=_perspectives(metrics, everything),
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


def _metrics(directory: RunDirectory, notes: list[str]) -> tuple[Mapping[str, float], ...]:
    lines = read_lines(directory.metrics_file, metrics_row)
    if lines.num_bad:
        notes.append(
            f"metrics.jsonl has {_lines(lines.num_bad)} that cannot be read (the last one is cut short "
            "when a run is killed while it writes): left out."
        )
    if not lines.rows:
        notes.append("There are no metrics yet: no step has ended, so there are no curves.")
    return tuple(sorted(lines.rows, key=lambda row: row["step"]))


def metrics_row(row: Mapping[str, Any]) -> dict[str, float]:
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


def _samples(directory: RunDirectory, kind: str, notes: list[str]) -> tuple[RolloutRow, ...]:
    rows: list[RolloutRow] = []
    for file in sorted(directory.samples.glob(f"{kind}_*.jsonl")):
        lines = read_lines(file, parse_row)
        rows += lines.rows
        if lines.num_bad:
            notes.append(f"samples/{file.name} has {_lines(lines.num_bad)} that cannot be read: left out.")
    if not rows and kind == "step":
        notes.append("There are no samples of training steps yet: nothing to read rollout by rollout.")
    return tuple(rows)


def _heldout(directory: RunDirectory, notes: list[str]) -> Mapping[int, tuple[RolloutRow, ...]]:
    by_step: dict[int, list[RolloutRow]] = {}
    for row in _samples(directory, "heldout", notes):
        by_step.setdefault(row.step, []).append(row)
    return {step: tuple(rows) for step, rows in sorted(by_step.items())}


def _probes(directory: RunDirectory, notes: list[str]) -> tuple[Mapping[str, float], ...]:
    """The first row of each `probes_*.jsonl` holds its metrics; the file's name says the step."""
    found: list[Mapping[str, float]] = []
    for file in sorted(directory.samples.glob("probes_*.jsonl")):
        step = file.stem.rpartition("_")[2]
        lines = read_lines(file, lambda row: row.get("metrics"))
        metrics = next((row for row in lines.rows if isinstance(row, dict)), None)
        if metrics is None or not step.isdecimal():
            notes.append(f"samples/{file.name} does not begin with its metrics: left out.")
        else:
            found.append(metrics_row({**metrics, "step": int(step)}))
    return tuple(found)


def _last_written(directory: RunDirectory) -> datetime | None:
    files = [directory.metrics_file, directory.summary_file, directory.config_file]
    files += directory.samples.glob("*.jsonl")
    times = [file.stat().st_mtime for file in files if file.is_file()]
    return datetime.fromtimestamp(max(times), UTC) if times else None


# ---- what follows from them ------------------------------------------------------------------


def _spans(metrics: Sequence[Mapping[str, float]]) -> tuple[Span, ...]:
    found = summarise(metrics, "FINISHED", 0.0, {})["metrics"]
    assert isinstance(found, dict)
    return tuple(Span(name, each["first"], each["last"], each["mean"]) for name, each in found.items())


def _evaluation(
    summary: Mapping[str, Any], heldout: Mapping[int, object], notes: list[str]
) -> Evaluation | None:
    evaluation = summary.get("evaluation")
    parts = evaluation if isinstance(evaluation, dict) else {}
    before, after = _numbers(parts.get("before")), _numbers(parts.get("after"))
    if before and after:
        return Evaluation(before, after, _numbers(parts.get("difference")))
    if heldout:
        notes.append("There is no held-out comparison: the run did not come to its second evaluation.")
    else:
        notes.append("There are no held-out answers: the run did not evaluate, or has not come to it.")
    return None


def _numbers(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        return {}
    numbers = metrics_row({**value, "step": 0})
    return {name: number for name, number in numbers.items() if name != "step"}


def _perspectives(
    metrics: Sequence[Mapping[str, float]], rows: Sequence[RolloutRow]
) -> tuple[PerspectiveView, ...]:
    """Those that occur, in the registry's order; one it does not know takes its scale from its scores."""
    names = dict.fromkeys(name for row in rows for name in row.judgments)
    for row in metrics:
        names |= dict.fromkeys(
            name.split("/")[1] for name in row if name.startswith("judge/") and name.endswith("/failed")
        )
    known = [name for name in BUILTIN_PERSPECTIVES if name in names]
    return tuple(_perspective(name, rows) for name in [*known, *(n for n in names if n not in known)])


def _perspective(name: str, rows: Sequence[RolloutRow]) -> PerspectiveView:
    if name in BUILTIN_PERSPECTIVES:
        known = load_perspective(name)
        return PerspectiveView(name, known.scale.low, known.scale.high, known.reads, known.kind)
    scores = [row.judgments[name].score for row in rows if name in row.judgments]
    highest = max((score for score in scores if score is not None), default=5.0)
    return PerspectiveView(name, 0.0 if highest > 5 else 1.0, max(highest, 5.0), "response", "empathy")


def _essentials(config: Config) -> tuple[tuple[str, str], ...]:
    """The settings that a reader asks for first; the whole configuration stands below them."""
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


def steps_in_words(report: RunReport) -> str:
    """How far it came, such as `8 of 30 steps in 6m52s`."""
    done = len(report.metrics)
    planned = report.steps_planned
    of = f"{done} of {planned} steps" if planned is not None else f"{done} steps"
    return of if report.wall_time_s is None else f"{of} in {duration(report.wall_time_s)}"


def _lines(count: int) -> str:
    return "one line" if count == 1 else f"{count} lines"
