"""The learning rate over a run, as a factor of its peak. Pure; `engine.py` gives it to the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable

from perm_ray.config.training import TrainerConfig


def lr_factor(config: TrainerConfig, total_steps: int) -> Callable[[int], float]:
    """The factor at step t, counted from 0: a rise over w steps, then the schedule.

    Steps are the optimizer's here, of which the objective may have several in one of the run's. The rise is
    (t + 1) / w with w = `warmup_steps` of the run, or ceil(`warmup_ratio` * total). The first step already
    learns; DeepSpeed's own schedules spend one or two steps at 0. The fall, linear or half a cosine, starts
    from 1 at the rise's last step and would be at `min_lr_ratio` one step after the run's last: no step is
    wasted at its end either.
    """
    by_ratio = math.ceil(round(config.warmup_ratio * total_steps, 6))
    steps = config.warmup_steps
    rise = max(1, by_ratio if steps is None else steps * config.objective.updates)
    low = config.min_lr_ratio

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        if config.schedule == "constant":
            return 1.0
        fallen = min(1.0, (step + 1 - rise) / (total_steps + 1 - rise))
        shape = 1 - fallen if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * fallen))
        return low + (1 - low) * shape

    return factor
