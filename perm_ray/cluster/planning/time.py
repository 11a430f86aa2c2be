"""How long a step takes, at most and by assumption: tokens of each phase over tokens a second.

Nothing is measured here. A rate that is not given is an achieved number of floating-point operations a second
(constants below, on the low side for a GPU of the A100 kind; on a CPU what README's machine did) over the
operations of a token: 2 for each parameter forward, 4 backward, 2 more where gradient checkpointing computes
the forward pass again, 2 for the reference (arXiv 2001.08361, section 2.1). Used by `plan.py`; pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from perm_ray.cluster.planning.shapes import ModelShape
from perm_ray.config.engines import EngineConfig
from perm_ray.config.schema import Config

ROLES = ("rollout", "judge", "train")
# Assumed operations a second of one GPU: decoding waits for memory, reading and training do not.
GPU_FLOPS: Mapping[str, float] = {"rollout": 20e12, "judge": 50e12, "train": 100e12}
# The same of one engine or rank without a GPU.
CPU_FLOPS: Mapping[str, float] = {"rollout": 0.06e12, "judge": 0.12e12, "train": 0.5e12}
SYNC_BYTES_PER_S = {True: 5e9, False: 0.4e9}  # on GPUs (NCCL between nodes), on CPUs (gloo)
NUMBER_TOKENS = 5  # of a judgment's score: the bystander has five criteria


@dataclass(frozen=True)
class PhaseTime:
    """`tokens` of a phase over `tokens_per_s`, of all GPUs (or actors) of the role together."""

    role: str
    tokens: int
    tokens_per_s: float
    assumed: bool

    @property
    def seconds(self) -> float:
        return self.tokens / self.tokens_per_s if self.tokens else 0.0


@dataclass(frozen=True)
class StepTime:
    """A step's phases. On GPUs, judging runs beside sampling; on CPUs they share the cores."""

    phases: tuple[PhaseTime, ...]
    sync_s: float
    overlaps: bool

    @property
    def seconds(self) -> float:
        rollout, judge, train = (phase.seconds for phase in self.phases)
        return (max(rollout, judge) if self.overlaps else rollout + judge) + train + self.sync_s


def step_time(
    config: Config, policy: ModelShape, judges: Mapping[str, ModelShape], given: Mapping[str, float]
) -> StepTime:
    """All completions at full length. `judges` are the shapes by engine; `given` are tokens a second of ONE
    GPU (or actor, without GPUs) by role."""
    on_gpu = config.trainer.num_gpus > 0
    completions = config.rollout.prompts_per_step * config.rollout.completions_per_prompt
    length = config.rollout.max_completion_tokens
    engine = config.rollout.engine
    phases = (
        _phase("rollout", completions * length, 2 * policy.parameters, _units(engine), given, on_gpu),
        _judging(config, completions, judges, given),
        _phase(
            "train",
            trained_tokens(config) * config.trainer.objective.epochs,
            _training_operations(config, policy),
            config.trainer.num_ranks,
            given,
            on_gpu,
        ),
    )
    width = 4 if config.trainer.dtype == "float32" else 2
    size = policy.parameters
    if config.sync.adapter_only:
        size = policy.adapter_parameters(config.trainer.lora.rank, config.trainer.lora.targets)
    return StepTime(phases, width * size / SYNC_BYTES_PER_S[on_gpu], overlaps=on_gpu)


def trained_tokens(config: Config) -> int:
    """Tokens of a step's training in one epoch, at most. A prompt that completions share is computed once for
    those of them that stay together: in a minibatch, a micro-batch and a rank (`trainer/batching.py`)."""
    rollout, trainer, prompt = config.rollout, config.trainer, config.prompt.max_tokens
    length, copies = rollout.max_completion_tokens, rollout.completions_per_prompt
    if trainer.share_prompts:
        minibatches = trainer.objective.minibatches
        together = math.ceil(copies / minibatches)  # of a group's completions, in a minibatch
        part = math.ceil(rollout.prompts_per_step * (prompt + together * length) / trainer.num_ranks)
        fitting = max(1, (min(trainer.micro_batch_tokens, part) - prompt) // length)
        copies = min(copies, (copies + minibatches * (fitting - 1)) // fitting)  # however they fall
    return rollout.prompts_per_step * (copies * prompt + rollout.completions_per_prompt * length)


def _phase(
    role: str, tokens: int, operations: float, units: float, given: Mapping[str, float], on_gpu: bool
) -> PhaseTime:
    """`operations` are those of a token."""
    assumed = (GPU_FLOPS if on_gpu else CPU_FLOPS)[role] / operations
    return PhaseTime(role, tokens, units * given.get(role, assumed), role not in given)


def _units(engine: EngineConfig) -> float:
    """GPUs of all replicas together; without GPUs the replicas."""
    return engine.replicas * (engine.num_gpus or 1.0)


def _training_operations(config: Config, policy: ModelShape) -> float:
    """Of a token. With an adapter the frozen weights' gradient, 2 of the 4, is not computed."""
    trainer = config.trainer
    backward = 2 if trainer.lora.rank else 4
    again = 2 if trainer.gradient_checkpointing else 0
    reference = 2 if trainer.objective.kl_coef > 0 else 0
    return policy.parameters * (2 + backward + again + reference)


def _judging(
    config: Config, completions: int, judges: Mapping[str, ModelShape], given: Mapping[str, float]
) -> PhaseTime:
    """All engines judge at once: the time is the slowest engine's, and its tokens and rate are told.

    A judgment reads the completion, its share of the scenario (once a group, from the prefix cache after
    that; the rubric always is there) and writes what its mode asks for. Endpoints are somebody else's time.
    """
    rollout, pools = config.rollout, config.judges.pools.values()
    found = [PhaseTime("judge", 0, 1.0, "judge" not in given)]
    for name, engine in config.judge_engines.items():
        tokens = 0
        for pool in (pool for pool in pools if pool.model == name):
            scoring = pool.scoring
            written = NUMBER_TOKENS * (scoring.num_samples if scoring.mode == "sampled" else 1)
            written += scoring.max_reason_tokens if scoring.mode == "reasoned" else 0
            scenario = config.prompt.max_tokens // rollout.completions_per_prompt
            read = rollout.max_completion_tokens + scenario
            if not engine.prefix_caching:
                read = engine.max_model_len
            tokens += completions * (read + written)
        operations = 2 * judges[name].parameters
        found.append(_phase("judge", tokens, operations, _units(engine), given, engine.num_gpus > 0))
    return max(found, key=lambda phase: phase.seconds)
