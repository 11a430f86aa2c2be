"""The configuration, as typed sections: every key, its default and its bounds.

A component receives its own section, never the whole. Sections are frozen; a value out of bounds
raises `ConfigError` when the section is built. `configs/base.yaml` shows the same keys and defaults
with a comment each (a test keeps the two equal); `load.py` merges files and `a.b=c` overrides.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Optional

from perm_ray.config.checks import at_least_zero, one_of, positive, require
from perm_ray.config.engines import BUILTIN_MODEL, EngineConfig
from perm_ray.config.judges import JudgesConfig
from perm_ray.config.training import RewardConfig, SyncConfig, TrainerConfig


@dataclass(frozen=True)
class RunConfig:
    """What is run, for how long, and where its files go."""

    name: Optional[str] = None
    dir: str = "runs"
    steps: int = 100
    seed: int = 42
    deterministic: bool = False

    def __post_init__(self) -> None:
        positive("run", self, "steps")
        if self.name is not None:
            safe = all(c.isalnum() or c in "._-" for c in self.name) and self.name[:1].isalnum()
            require(safe, "run.name", "letters, digits, '.', '_' and '-' only", self.name)


@dataclass(frozen=True)
class RayConfig:
    """Which Ray cluster: `address: null` starts a private one on this machine."""

    address: Optional[str] = None
    num_cpus: Optional[int] = None
    object_store_gb: float = 1.0
    startup_timeout_s: float = 300.0
    layout: str = "separate"
    share_gpus: bool = False

    def __post_init__(self) -> None:
        positive("ray", self, "object_store_gb", "startup_timeout_s")
        one_of("ray", self, "layout", "separate", "colocated")


@dataclass(frozen=True)
class PolicyConfig:
    """The model that is trained: a built-in name, a folder or a hub id."""

    model: str = BUILTIN_MODEL


@dataclass(frozen=True)
class DataConfig:
    """Scenario files (JSONL), or `builtin:train` and `builtin:heldout`."""

    train: str = "builtin:train"
    heldout: str = "builtin:heldout"


@dataclass(frozen=True)
class PromptConfig:
    """How a scenario is put to the policy."""

    template: Optional[str] = None
    prefix: str = ""
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        positive("prompt", self, "max_tokens")


@dataclass(frozen=True)
class RolloutConfig:
    """How much is sampled each step, and by what."""

    prompts_per_step: int = 8
    completions_per_prompt: int = 8
    max_completion_tokens: int = 1024
    max_resamples: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    timeout_s: float = 900.0
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        positive("rollout", self, "prompts_per_step", "max_completion_tokens", "temperature")
        positive("rollout", self, "top_p", "timeout_s")
        at_least_zero("rollout", self, "max_resamples")
        require(
            self.completions_per_prompt >= 2,
            "rollout.completions_per_prompt",
            "2 or more (advantages compare a completion with its group)",
            self.completions_per_prompt,
        )
        require(self.top_p <= 1, "rollout.top_p", "at most 1", self.top_p)


@dataclass(frozen=True)
class ProbeConfig:
    """Probing the judges while training. `every: 0` turns it off; `rise_threshold` is a share of the
    scale: an attack score that has risen by so much since the first time is flagged."""

    every: int = 0
    rise_threshold: float = 0.1

    def __post_init__(self) -> None:
        at_least_zero("evaluation.probes", self, "every")
        key = "evaluation.probes.rise_threshold"
        require(0 < self.rise_threshold <= 1, key, "in (0, 1]", self.rise_threshold)


@dataclass(frozen=True)
class EvaluationConfig:
    """The judged reward on held-out scenarios. `num_scenarios: 0` turns it off."""

    num_scenarios: int = 16
    completions_per_prompt: int = 1
    every: int = 0
    probes: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        at_least_zero("evaluation", self, "num_scenarios", "every")
        positive("evaluation", self, "completions_per_prompt")


@dataclass(frozen=True)
class SamplesConfig:
    """Rollouts shown in MLflow: `count` of them every `every` steps. `every: 0` turns it off."""

    every: int = 10
    count: int = 12

    def __post_init__(self) -> None:
        at_least_zero("tracking.samples", self, "every")
        positive("tracking.samples", self, "count")


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow. `mlflow_uri: null` is an sqlite file in the run directory."""

    mlflow: bool = True
    mlflow_uri: Optional[str] = None
    experiment: str = "perm_ray"
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    register_model: Optional[str] = None

    def __post_init__(self) -> None:
        name = self.register_model
        plain = name is None or (bool(name.strip()) and not set(name) & set("/:"))
        require(plain, "tracking.register_model", "a name without '/' and ':'", name)


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints every `every` steps (0: only the last one), and which of them are kept: the newest
    `keep`, those of every `keep_every`-th step, and the `keep_best` with the highest held-out reward."""

    every: int = 50
    keep: int = 2
    keep_every: int = 0
    keep_best: int = 0

    def __post_init__(self) -> None:
        at_least_zero("checkpoint", self, "every", "keep_every", "keep_best")
        positive("checkpoint", self, "keep")


@dataclass(frozen=True)
class Config:
    """The whole configuration. Hand a component its own section, never this."""

    run: RunConfig = field(default_factory=RunConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    data: DataConfig = field(default_factory=DataConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    judges: JudgesConfig = field(default_factory=JudgesConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        needed = self.prompt.max_tokens + self.rollout.max_completion_tokens
        length = self.rollout.engine.max_model_len
        require(
            needed <= length,
            "rollout.engine.max_model_len",
            f"at least prompt.max_tokens + rollout.max_completion_tokens = {needed}",
            length,
        )

        completions = self.rollout.prompts_per_step * self.rollout.completions_per_prompt
        require(
            self.trainer.objective.minibatches <= completions,
            "trainer.objective.minibatches",
            f"at most the completions of a step, {completions}",
            self.trainer.objective.minibatches,
        )
        require(
            (self.rollout.engine.num_gpus > 0) == (self.trainer.num_gpus > 0),
            "trainer.num_gpus",
            "0 or more than 0 together with rollout.engine.num_gpus (weights go from one to the other)",
            self.trainer.num_gpus,
        )
        self._check_gpus()
        adapter_only = self.sync.adapter_only
        require(
            not adapter_only or (self.trainer.lora.rank > 0 and self.trainer.num_gpus == 0),
            "sync.adapter_only",
            "false unless trainer.lora.rank is set, and on GPUs (their transfer takes whole weights)",
            adapter_only,
        )
        evaluated = self.evaluation.every if self.evaluation.num_scenarios else 0
        require(
            not self.checkpoint.keep_best or (evaluated > 0 and self.checkpoint.every % evaluated == 0),
            "checkpoint.keep_best",
            "0 unless evaluation.every is set and checkpoint.every is a multiple of it (the best is the one "
            "with the highest held-out reward)",
            self.checkpoint.keep_best,
        )

    def _check_gpus(self) -> None:
        """A fraction of a GPU is asked for on purpose only, and never by a trainer rank."""
        require(
            self.trainer.num_gpus % 1 == 0,
            "trainer.num_gpus",
            "a whole number (two processes on one GPU cannot form a NCCL group)",
            self.trainer.num_gpus,
        )
        sampling = {"rollout.engine": self.rollout.engine.num_gpus}
        judging = {f"judges.engines.{name}": e.num_gpus for name, e in self.judges.engines.items()}
        for key, num_gpus in (sampling | judging).items():
            require(
                num_gpus % 1 == 0 or self.ray.share_gpus,
                f"{key}.num_gpus",
                "a whole number unless ray.share_gpus is true (engines on one GPU also share its memory: "
                "lower gpu_memory_utilization of each)",
                num_gpus,
            )

    def as_dict(self) -> dict[str, object]:
        """The configuration as plain nested values, for files and reports."""
        return dataclasses.asdict(self)
