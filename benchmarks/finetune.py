"""What fine-tuning costs over a bare torch loop: the same adapter, the same demonstrations, in turns."""

from __future__ import annotations

from statistics import median

from benchmarks.trainer import ROUNDS, bare_loop, speeds, trainer_group
from perm_ray.config.schema import Config
from perm_ray.trainer.batching import plan_step

DESCRIPTION = "Fine-tuning, against a bare torch loop"
CONFIG = "finetune.yaml"


def measure(config: Config) -> dict[str, float | list[float]]:
    """`finetune_vs_bare` is the median over rounds of our tokens/s over the bare loop's. Tokens are those of
    the first update of `perm-ray finetune`, prompt and answer together."""
    from perm_ray.cli.finetune import demonstrations
    from perm_ray.cluster.placement import trainer_demand
    from perm_ray.cluster.session import cluster
    from perm_ray.runs.examples import batches_of
    from perm_ray.runs.finetune import trainer_only

    examples = demonstrations(config)
    batch = batches_of(examples.epochs, config.finetune.batch_size, config.run.seed)[0]
    trainer = trainer_only(config).trainer
    micro_batches = plan_step(batch, trainer.micro_batch_tokens, 1)[0][0].micro_batches
    demand = trainer_demand(config)
    with (
        cluster(config.ray, [demand, demand], print),
        bare_loop(trainer, examples.model, "supervised") as (bare, _),
        trainer_group(trainer, examples.model, config.run.seed, "supervised") as (train, _),
    ):
        ours, theirs = speeds([lambda: train(batch), lambda: bare(micro_batches)], batch, ROUNDS)
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return {
        "tokens_per_step": float(sum(map(len, batch))),
        "finetune_vs_bare": median(ratios),
        "finetune_vs_bare_rounds": ratios,
        "tokens_per_s": median(ours),
        "bare_tokens_per_s": median(theirs),
    }
