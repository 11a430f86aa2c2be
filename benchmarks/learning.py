"""Does the policy learn? Held-out answers before and after training, by the judges of the evaluation."""

from __future__ import annotations

from benchmarks.training_run import train
from perm_ray.config.schema import Config
from perm_ray.errors import RunError
from perm_ray.evaluation.model_comparison import compare_models

DESCRIPTION = "Held-out answers, before and after training"
CONFIG = "learning.yaml"


def measure(config: Config) -> dict[str, float | list[float]]:
    """Return each measure before and after, and its paired difference with the 95% bootstrap interval."""
    run = train(config)
    summary = run.summary
    if len(run.heldout) < 2 or "difference" not in summary["evaluation"]:
        raise RunError("Learning needs at least two held-out scenarios: raise evaluation.num_scenarios.")
    answers = {"before": run.heldout[0], "after": run.heldout[-1]}
    before, after = compare_models(answers, config.run.seed)
    figures: dict[str, float | list[float]] = {
        "steps": float(summary["steps"]),
        "minutes": summary["wall_time_s"] / 60,
        "pairs": float(after.differences["reward"].pairs),
    }
    training = summary["evaluation"].get("training_judges", {}).get("difference")
    if training is not None:
        figures["reward of the training judges: difference, low, high"] = [
            training[key] for key in ("mean", "low", "high")
        ]
    for name, mean in before.means.items():
        figures[f"{name}: before, after"] = [mean, after.means.get(name, float("nan"))]
        if name in after.differences:
            difference = after.differences[name]
            figures[f"{name}: difference, low, high"] = [difference.mean, difference.low, difference.high]
    figures["distinct_2 after / before"] = after.means["distinct_2"] / before.means["distinct_2"]
    figures["tokens after / before"] = after.means["tokens"] / before.means["tokens"]
    return figures
