"""Where a step's time goes: the whole loop on the local configuration."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from benchmarks.training_run import train
from perm_ray.config.schema import Config

DESCRIPTION = "The training loop"
CONFIG = "local.yaml"
PHASES = ("generate", "judge", "train", "sync")


def measure(config: Config) -> dict[str, float | list[float]]:
    """Medians over the steps after the first (which compiles grammars and warms caches up).

    `judge_share` is what judging took beyond sampling; `driver_overhead_share` what no phase accounts
    for: rewards, files, metrics.
    """
    config = replace(config, evaluation=replace(config.evaluation, num_scenarios=0))
    rows = train(config).rows[1:]
    step_s = [row["time/step_s"] for row in rows]
    figures: dict[str, float | list[float]] = {
        "steps": float(len(rows)),
        "seconds_per_step": median(step_s),
        "seconds_per_step_min_max": [min(step_s), max(step_s)],
        "steps_per_hour": 3600 / median(step_s),
    }
    for phase in PHASES:
        figures[f"{phase}_share"] = median(row[f"time/{phase}_s"] / row["time/step_s"] for row in rows)
    figures["driver_overhead_share"] = median(
        1 - sum(row[f"time/{phase}_s"] for phase in PHASES) / row["time/step_s"] for row in rows
    )
    return figures
