"""Learning-rate schedule, as a factor of its peak. Pure; `deepspeed.py` gives it to the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable

from perm_ray.config.training import TrainerConfig


def lr_factor(config: TrainerConfig, total_steps: int) -> Callable[[int], float]:
    """Build the factor at optimizer step t, counted from 0: a linear warm-up over w steps, then the schedule.

    The objective may make several optimizer steps in one step of the run. Warm-up is (t + 1) / w with w =
    `warmup_steps` of the run, or ceil(`warmup_ratio` * total). The first step already learns; DeepSpeed's own
    schedules spend one or two steps at 0. The decay, linear or half a cosine, starts from 1 at the last step
    of the warm-up and would be at `min_lr_ratio` one step after the run's last: no step is wasted at its end
    either.
    """
    steps_by_ratio = math.ceil(round(config.warmup_ratio * total_steps, 6))
    configured = config.warmup_steps
    warmup_steps = max(1, steps_by_ratio if configured is None else configured * config.objective.updates)
    min_ratio = config.min_lr_ratio

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if config.schedule == "constant":
            return 1.0
        progress = min(1.0, (step + 1 - warmup_steps) / (total_steps + 1 - warmup_steps))
        decay = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return min_ratio + (1 - min_ratio) * decay

    return factor
