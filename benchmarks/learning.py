"""Does the policy learn? The judged reward on held-out scenarios, before and after training."""

from __future__ import annotations

from benchmarks.training_run import train
from perm_ray.config.schema import Config
from perm_ray.errors import RunError

DESCRIPTION = "Held-out reward, before and after training"
CONFIG = "learning.yaml"


def measure(config: Config) -> dict[str, float | list[float]]:
    """The paired difference over held-out scenarios with its 95% bootstrap interval, and what moved."""
    summary = train(config).summary
    evaluation = summary["evaluation"]
    if "difference" not in evaluation:
        raise RunError("Learning needs at least two held-out scenarios: raise evaluation.num_scenarios.")
    difference = evaluation["difference"]
    figures: dict[str, float | list[float]] = {
        "steps": float(summary["steps"]),
        "minutes": summary["wall_time_s"] / 60,
        "reward_difference": difference["mean"],
        "reward_difference_95": [difference["low"], difference["high"]],
        "rises_beyond_noise": float(difference["low"] > 0),
        "pairs": float(difference["pairs"]),
    }
    for name, before in evaluation["before"].items():
        figures[f"{name} before, after"] = [before, evaluation["after"].get(name, float("nan"))]
    return figures
