"""What a checkpoint costs: how long the loop waits for it, and how long until it is on the disk.

The trainer as configured, without engines or judges. Steps run between the saves, as in a run, so that
writing has to share the machine with training.
"""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from perm_ray.config.schema import CheckpointConfig, Config

DESCRIPTION = "A checkpoint: seconds the loop waits, seconds until it is written"
CONFIG = "local.yaml"
SAVES, SEQUENCES, TOKENS = 4, 8, 200


def measure(config: Config) -> dict[str, float | list[float]]:
    """`blocked_s` and `total_s` are medians over the saves but for the first, which finds cold memory;
    `step_s` is of steps with nothing to write, `step_while_writing_s` of those that follow a save."""
    from perm_ray.cluster.placement import trainer_demand
    from perm_ray.cluster.session import start_ray, stop_ray
    from perm_ray.models.resolve import resolve_model
    from perm_ray.runs.checkpoint import Checkpoints
    from perm_ray.runs.run_state import RunState
    from perm_ray.trainer.group import TrainerGroup
    from tests.support.sequences import one_turn

    rng = random.Random(0)
    sequences = [
        one_turn(
            tuple(rng.choices(range(10, 1000), k=TOKENS // 2)),
            tuple(rng.choices(range(10, 1000), k=TOKENS // 2)),
            (-6.0,) * (TOKENS // 2),
            rng.gauss(0, 1),
        )
        for _ in range(SEQUENCES)
    ]
    quiet: list[float] = []
    writing: list[float] = []
    costs = []
    start_ray(config.ray, [trainer_demand(config)])
    try:
        trainer = TrainerGroup(config.trainer, resolve_model(config.policy.model), config.run.seed, 100)
        trainer.start_async()
        trainer.wait_ready()
        new = RunState.new({}, {}, config)

        def step(number: int) -> float:
            began = time.monotonic()
            trainer.train_step(number, sequences)
            return time.monotonic() - began

        step(0)
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmark-") as folder:
            checkpoints = Checkpoints(Path(folder), CheckpointConfig())
            for number in range(SAVES):
                quiet.append(step(2 * number + 1))
                checkpoints.save(replace(new, step=number), trainer.save)
                writing.append(step(2 * number + 2))
                cost = checkpoints.wait()
                assert cost is not None
                costs.append(cost)
            newest = Path(folder) / str(checkpoints.latest_name())
            size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
            began = time.monotonic()
            checkpoints.load()
            verify_s = time.monotonic() - began
    finally:
        stop_ray()
    blocked, total = ([getattr(cost, name) for cost in costs[1:]] for name in ("blocked_s", "total_s"))
    return {
        "blocked_s": median(blocked),
        "total_s": median(total),
        "blocked_share": median(blocked) / median(total),
        "blocked_s_each": [cost.blocked_s for cost in costs],
        "total_s_each": [cost.total_s for cost in costs],
        "step_s": median(quiet),
        "step_while_writing_s": median(writing[1:]),
        "verify_s": verify_s,
        "gigabytes": size / 1e9,
    }
