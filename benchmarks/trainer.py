"""What the trainer costs over a bare torch loop, and what each setting costs: speed and memory.

Bare is forward, backward and torch's AdamW over the same packed micro-batches with the same model, dtype,
threads and gradient checkpointing, in an actor of its own, without DeepSpeed, metrics or fp32 master
weights. The two take turns, so that neither disturbs the other and a change of the machine's speed hits
both. Every setting gets fresh processes, so that peak memory is its own.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from perm_ray.config.schema import Config
from perm_ray.config.training import LoraConfig, ObjectiveConfig, TrainerConfig
from perm_ray.trainer.batching import MicroBatch, Task, TrainSequence, plan_step
from tests.support.ranks import in_ranks
from tests.support.sequences import random_sequences

DESCRIPTION = "The trainer, against a bare torch loop and by setting"
CONFIG = "local.yaml"
NUM_PROMPTS, COMPLETIONS_PER_PROMPT, PROMPT_TOKENS, COMPLETION_TOKENS = 3, 4, (200, 300), (20, 160)
ROUNDS, SETTING_ROUNDS = 5, 2
HEADS = {"49k": (49_152, 576), "152k": (151_936, 896)}  # vocabulary and width: SmolLM2 135M, Qwen2.5 0.5B
HEAD_TOKENS = 1024


def measure(config: Config) -> dict[str, float | list[float]]:
    """`trainer_vs_bare` is the median over rounds of trainer over bare tokens/s; tokens are those of the
    sequences, prompt and completion together, also where a prompt is computed once for several. Peaks are of
    a rank's whole process, libraries and all."""
    from perm_ray.cluster.placement import demands
    from perm_ray.cluster.session import start_ray, stop_ray
    from perm_ray.models.resolve import resolve_model

    model_dir = resolve_model(config.policy.model)
    batch = _sequences(config.run.seed)
    figures: dict[str, float | list[float]] = {"tokens_per_step": float(sum(map(len, batch)))}
    start_ray(config.ray, demands(config))
    try:
        figures |= _against_bare(config, model_dir, batch)
        for name, changed in _settings(config.trainer).items():
            with trainer_group(changed, model_dir, config.run.seed) as (train, peak_gb):
                own = speeds([lambda: train(batch)], batch, SETTING_ROUNDS)[0]
                figures[f"tokens_per_s {name}"] = median(own)
                figures[f"peak_memory_gb {name}"] = peak_gb()
        figures |= _heads(config.trainer.num_threads)
        figures |= _syncs(config, model_dir)
    finally:
        stop_ray()
    return figures


def _settings(trainer: TrainerConfig) -> dict[str, TrainerConfig]:
    """What the table compares; the plain one is measured against the bare loop."""
    no_kl = replace(trainer, objective=replace(trainer.objective, kl_coef=0.0))
    return {
        "with KL": replace(trainer, objective=ObjectiveConfig()),
        "without prompt sharing": replace(no_kl, share_prompts=False),
        "without gradient checkpointing": replace(no_kl, gradient_checkpointing=False),
        "ZeRO-3": replace(no_kl, zero_stage=3),
        "LoRA, rank 16": replace(no_kl, lora=LoraConfig(rank=16)),
        "LoRA, rank 16, with KL": replace(trainer, lora=LoraConfig(rank=16), objective=ObjectiveConfig()),
    }


def _sequences(seed: int) -> list[TrainSequence]:
    """Random tokens in groups and lengths like those of a step of the local configuration."""
    drawn = random_sequences(
        random.Random(seed),
        NUM_PROMPTS * COMPLETIONS_PER_PROMPT,
        per_prompt=COMPLETIONS_PER_PROMPT,
        vocabulary=range(1000, 40_000),
        prompt_tokens=PROMPT_TOKENS,
        completion_tokens=COMPLETION_TOKENS,
        logprob=-5.0,
    )
    return list(drawn)


def _against_bare(
    config: Config, model_dir: Path, batch: Sequence[TrainSequence]
) -> dict[str, float | list[float]]:
    trainer = replace(config.trainer, objective=replace(config.trainer.objective, kl_coef=0.0))
    plan = plan_step(batch, trainer.micro_batch_tokens, 1)
    micro_batches = plan[0][0].micro_batches
    with bare_loop(trainer, model_dir) as (bare, bare_peak_gb):
        with trainer_group(trainer, model_dir, config.run.seed) as (train, peak_gb):
            metrics: dict[str, float] = {}
            steps = [lambda: metrics.update(train(batch)), lambda: bare(micro_batches)]
            ours, theirs = speeds(steps, batch, ROUNDS)
            peak = peak_gb()
        bare_peak = bare_peak_gb()
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return {
        "padding_share": metrics["trainer/padding_share"],
        "shared_share": metrics["trainer/shared_share"],
        "trainer_vs_bare": median(ratios),
        "trainer_vs_bare_rounds": ratios,
        "tokens_per_s": median(ours),
        "bare_tokens_per_s": median(theirs),
        "peak_memory_gb": peak,
        "bare_peak_memory_gb": bare_peak,
    }


def speeds(
    steps: Sequence[Callable[[], object]], batch: Sequence[TrainSequence], rounds: int
) -> list[list[float]]:
    """Tokens/s of each, in turns; a first round warms up and is not counted."""
    found: list[list[float]] = [[] for _ in steps]
    for round_ in range(rounds + 1):
        for step, own in zip(steps, found, strict=True):
            start = time.monotonic()
            step()
            if round_ > 0:
                own.append(sum(map(len, batch)) / (time.monotonic() - start))
    return found


@contextmanager
def trainer_group(
    config: TrainerConfig, model_dir: Path, seed: int, task: Task = "policy"
) -> Iterator[tuple[Callable[[Sequence[TrainSequence]], dict[str, float]], Callable[[], float]]]:
    """A trainer group of its own: how to train a step on it, and its ranks' highest peak memory."""
    from perm_ray.trainer.group import TrainerGroup

    group = TrainerGroup(config, model_dir, seed, total_steps=ROUNDS + 1, task=task)
    group.start_async()
    try:
        group.wait_ready()
        steps = iter(range(1_000_000))
        yield (
            lambda batch: group.train_step(next(steps), batch),
            lambda: max(in_ranks(group, _peak_gb)),
        )
    finally:
        group.shutdown()


@contextmanager
def bare_loop(
    config: TrainerConfig, model_dir: Path, task: Task = "policy"
) -> Iterator[tuple[Callable[[Sequence[MicroBatch]], None], Callable[[], float]]]:
    """A bare loop in an actor of its own: how to train a step on it, and its peak memory."""
    import ray

    from perm_ray.cluster.calls import wait_all
    from perm_ray.trainer.group import actor_environment

    as_actor: Any = ray.remote(
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        runtime_env={"env_vars": actor_environment(config)},
    )(BareLoop)
    actor = as_actor.remote(config, model_dir, task)

    def train(micro_batches: Sequence[MicroBatch]) -> None:
        call = {"bare loop": actor.step.remote(micro_batches)}
        wait_all(call, timeout_s=config.step_timeout_s, doing="training")

    try:
        yield train, lambda: ray.get(actor.peak_gb.remote(), timeout=60)
    finally:
        ray.kill(actor)


def _peak_gb(rank: object = None) -> float:
    """The most memory that this process has had."""
    del rank
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class BareLoop:
    """The same training without anything around it: of all weights, or of an adapter; on samples, or on
    demonstrations, whose tokens all weigh the same."""

    def __init__(self, config: TrainerConfig, model_dir: Path, task: Task = "policy") -> None:
        import torch

        from perm_ray.trainer.lora import add_adapter
        from perm_ray.trainer.packing import load_policy

        torch.set_num_threads(config.num_threads)
        self._device = torch.device("cuda" if config.num_gpus > 0 else "cpu")
        self._model: Any = load_policy(model_dir, getattr(torch, config.dtype))
        self._weighted = task == "policy"
        if config.lora.rank > 0:
            add_adapter(self._model, config.lora, 0)
        self._model.to(self._device)
        if config.gradient_checkpointing:
            self._model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._model.train()
        self._optimizer = torch.optim.AdamW(
            [p for p in self._model.parameters() if p.requires_grad],
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def step(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Make one update: the plain policy gradient on fresh samples, or the mean log-likelihood."""
        from perm_ray.trainer.packing import pack

        packed = [pack(micro_batch, self._device) for micro_batch in micro_batches]
        total = sum(len(batch.targets) for batch in packed)
        for batch in packed:
            logprobs, _ = self._model(batch)
            weighted = logprobs * batch.advantages if self._weighted else logprobs
            (-weighted.sum() / total).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def peak_gb(self) -> float:
        return _peak_gb()


def _syncs(config: Config, model_dir: Path) -> dict[str, float | list[float]]:
    """Seconds and megabytes of a weight sync under LoRA: merged by the trainer, or the adapter alone."""
    from perm_ray.cluster.calls import wait_all
    from perm_ray.rollout.pool import RolloutPool
    from perm_ray.runs.weight_sync import WeightSync
    from perm_ray.trainer.group import TrainerGroup

    sampling = replace(config.rollout, engine=replace(config.rollout.engine, replicas=1))
    backend = config.transfer_backend
    rollouts = RolloutPool(sampling, model_dir, config.run.seed, deterministic=False, weights_by=backend)
    lora = replace(config.trainer, lora=LoraConfig(rank=16))
    group = TrainerGroup(lora, model_dir, config.run.seed, total_steps=1)
    group.start_async()
    wait_all(rollouts.starting(), timeout_s=sampling.engine.start_timeout_s, doing="starting")
    group.wait_ready()
    figures: dict[str, float | list[float]] = {}
    for name, adapter_only in (("merged", False), ("adapter only", True)):
        sync = WeightSync(group, rollouts, replace(config.sync, backend=backend, adapter_only=adapter_only))
        sync.connect()
        pushed = [sync.push(version) for version in range(ROUNDS)]
        size = pushed[0].num_bytes / 1e6
        figures[f"sync under LoRA, {name}: seconds, MB"] = [median(p.seconds for p in pushed), size]
    group.shutdown()
    return figures


# --- the head: log-probabilities and their gradients, by blocks and with all logits at once ------------


class HeadProbe:
    """One way to score tokens, in a process of its own."""

    def run(self, vocabulary: int, width: int, in_blocks: bool, threads: int) -> tuple[float, float]:
        """Tokens/s of forward and backward with entropy, and the memory it took at most, in GB."""
        import torch
        from torch.nn import Linear, functional

        from perm_ray.trainer.head import score

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        head = Linear(width, vocabulary, bias=False, dtype=torch.bfloat16)
        hidden = torch.randn(HEAD_TOKENS, width, dtype=torch.bfloat16, requires_grad=True)
        targets = torch.randint(vocabulary, (HEAD_TOKENS,))
        assert head.weight.grad is None
        head.weight.grad, hidden.grad = torch.zeros_like(head.weight), torch.zeros_like(hidden)
        before, times = _peak_gb(), []
        for _ in range(3):
            start = time.monotonic()
            if in_blocks:
                logprobs, _ = score(head, hidden, targets, with_entropy=True)
            else:
                logits = functional.linear(hidden, head.weight).float()
                logprobs = -functional.cross_entropy(logits, targets, reduction="none")
                with torch.no_grad():
                    log_p = logits.log_softmax(-1)
                    _entropy = -(log_p.exp() * log_p).sum(-1)
            logprobs.sum().backward()
            times.append(time.monotonic() - start)
        return HEAD_TOKENS / median(times), _peak_gb() - before


def _heads(threads: int) -> dict[str, float | list[float]]:
    import ray

    from perm_ray.cluster.calls import wait_all

    figures: dict[str, float | list[float]] = {}
    for size, (vocabulary, width) in HEADS.items():
        for way in ("blocks", "all at once"):
            environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
            probe_actor: Any = ray.remote(num_cpus=0, runtime_env={"env_vars": environment})(HeadProbe)
            probe = probe_actor.remote()
            call = {"head": probe.run.remote(vocabulary, width, way == "blocks", threads)}
            ((speed, memory),) = wait_all(call, timeout_s=300, doing="scoring tokens")
            ray.kill(probe)
            figures[f"head {size}, {way}: tokens_per_s, memory_gb"] = [speed, memory]
    return figures
