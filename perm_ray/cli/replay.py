"""`perm-ray train --replay FILE`: run the one training step that a run stopped on, alone.

Starts the trainer and nothing else: no sampling, no judges. Weights are those of the checkpoint that the
file names, in the `checkpoints/` beside it, or the base model's; nothing is written.
"""

from __future__ import annotations

from pathlib import Path

from perm_ray.cluster.placement import TRAINER, trainer_demand
from perm_ray.cluster.session import cluster
from perm_ray.models.resolve import resolve_model
from perm_ray.runs.checkpoint import Checkpoints
from perm_ray.runs.replay import FailedStep
from perm_ray.runs.run_plan import RunPlan
from perm_ray.trainer.group import TrainerGroup


def replay(plan: RunPlan, file: Path) -> int:
    """Print why the run stopped and the step's metrics, or raise what the step raises."""
    config = plan.config
    failed = FailedStep.read(file)
    model = resolve_model(config.policy.model)
    trainer_folder = None
    if failed.checkpoint is not None:
        checkpoints = Checkpoints(file.absolute().parent / "checkpoints", config.checkpoint)
        state, trainer_folder = checkpoints.load(failed.checkpoint)
        print(f"Weights of step {state.step}, from the checkpoint {failed.checkpoint}.")
    else:
        print(f"Weights of {config.policy.model}: the run had no checkpoint.")
    print(f"Step {failed.step}, {len(failed.sequences)} sequences. The run stopped because: {failed.reason}")
    with cluster(config.ray, [trainer_demand(config)], print) as reserved:
        places = reserved.of(TRAINER, config.trainer.num_ranks)
        temperature = config.rollout.temperature
        trainer = TrainerGroup(config.trainer, model, config.run.seed, config.run.steps, places, temperature)
        trainer.start_async()
        trainer.wait_ready()
        if trainer_folder is not None:
            trainer.load(trainer_folder)
        metrics = trainer.train_step(failed.step, failed.sequences)
    for name, value in metrics.items():
        print(f"{name:<28}{value:.6g}")
    return 0
