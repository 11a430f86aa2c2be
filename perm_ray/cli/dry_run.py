"""Describe a run for `--dry-run`: the resolved configuration, a step's arithmetic, the resources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from perm_ray.cluster.placement import Demand, demands, total
from perm_ray.config.load import dump_config
from perm_ray.config.schema import Config
from perm_ray.runs.run_plan import RunPlan


def describe(plan: RunPlan) -> str:
    """Return the description as text for a terminal."""
    parts = {
        "Configuration": dump_config(plan.config).rstrip(),
        "One step": "\n".join(_arithmetic(plan)),
        "Resources": "\n".join(_resources(demands(plan.config))),
    }
    return "\n\n".join(f"{title}\n{'-' * len(title)}\n{text}" for title, text in parts.items()) + "\n"


def _arithmetic(plan: RunPlan) -> list[str]:
    config = plan.config
    rollout, num_prompts = config.rollout, config.rollout.prompts_per_step
    completions = num_prompts * rollout.completions_per_prompt
    sampled = completions * rollout.max_completion_tokens
    num_pools = len(config.judges.pools)
    epochs = config.run.steps * num_prompts / len(plan.train)
    held = len(plan.heldout) * config.evaluation.completions_per_prompt
    return [
        f"{num_prompts} prompts x {rollout.completions_per_prompt} completions = {completions} completions",
        f"{completions} completions x {rollout.max_completion_tokens} tokens = {sampled:,} sampled at most",
        f"{completions} completions x {num_pools} perspectives = {completions * num_pools} judgments",
        f"{trained_tokens(config):,} tokens trained on at most, in micro-batches of "
        f"{config.trainer.micro_batch_tokens:,} over {config.trainer.num_ranks} rank(s)",
        f"{config.trainer.objective.updates} update(s) of the policy",
        f"{config.run.steps} steps x {num_prompts} prompts = {epochs:.2f} epochs of "
        f"{len(plan.train)} scenarios",
        f"{held} held-out completions judged before and after training",
    ]


def _resources(rows: Sequence[Demand]) -> list[str]:
    lines = [f"{'role':<28}{'actors':>7}{'CPUs each':>11}{'GPUs each':>11}  model"]
    lines += [
        f"{row.role:<28}{row.count:>7}{row.num_cpus:>11g}{row.num_gpus:>11g}  "
        f"{row.model}{_own(row.resources)}"
        for row in rows
    ]
    sums = total(rows)
    cpus, gpus = sums.pop("CPU", 0.0), sums.pop("GPU", 0.0)
    return [
        *lines,
        f"{'together':<28}{sum(row.count for row in rows):>7}{cpus:>11g}{gpus:>11g}{_own(sums)}",
    ]


def _own(resources: Mapping[str, float]) -> str:
    """Return the custom resources of a cluster, if any are asked for."""
    return "".join(f"  {name} {amount:g}" for name, amount in resources.items())


def trained_tokens(config: Config) -> int:
    """Return the tokens of a step's training in one epoch, at most. A prompt that completions share is
    computed once for those of them that stay together: in a minibatch, a micro-batch and a rank
    (`trainer/batching.py`)."""
    rollout, trainer, prompt = config.rollout, config.trainer, config.prompt.max_tokens
    length, copies = rollout.max_completion_tokens, rollout.completions_per_prompt
    if trainer.share_prompts:
        minibatches = trainer.objective.minibatches
        together = math.ceil(copies / minibatches)  # of a group's completions, in a minibatch
        part = math.ceil(rollout.prompts_per_step * (prompt + together * length) / trainer.num_ranks)
        fitting = max(1, (min(trainer.micro_batch_tokens, part) - prompt) // length)
        copies = min(copies, (copies + minibatches * (fitting - 1)) // fitting)  # however they fall
    return rollout.prompts_per_step * (copies * prompt + rollout.completions_per_prompt * length)
