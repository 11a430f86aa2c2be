"""The sections of learning: the reward, the trainer's objective and ranks, and weight sync."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from perm_ray.config.checks import at_least_zero, custom_resources, one_of, positive, require


@dataclass(frozen=True)
class RewardConfig:
    """PERM's reward: empathy + bystander + length (arXiv 2601.10532)."""

    combine: str = "harmonic"
    weights: dict[str, float] = field(default_factory=dict)
    bystander_coef: float = 0.5
    length_coef: float = 0.001
    length_free_tokens: int = 768
    missing_section: str = "floor"
    score_map: Optional[str] = None
    truncated: str = "keep"
    truncated_penalty: float = 0.5
    composition: str = "sum_then_normalize"
    advantage_baseline: str = "mean"
    advantage_scaling: str = "group"

    def __post_init__(self) -> None:
        one_of("rewards", self, "combine", "harmonic", "mean", "geometric")
        one_of("rewards", self, "missing_section", "floor", "mask")
        one_of("rewards", self, "truncated", "keep", "mask", "penalise")
        one_of("rewards", self, "composition", "sum_then_normalize", "normalize_then_sum")
        one_of("rewards", self, "advantage_baseline", "mean", "leave_one_out")
        one_of("rewards", self, "advantage_scaling", "group", "batch", "none")
        at_least_zero("rewards", self, "bystander_coef", "length_coef", "length_free_tokens")
        positive("rewards", self, "truncated_penalty")
        normalized = self.composition == "normalize_then_sum"
        require(
            not normalized or (self.advantage_baseline, self.advantage_scaling) == ("mean", "group"),
            "rewards.advantage_baseline and advantage_scaling",
            "mean and group with normalize_then_sum, which normalises by itself",
            (self.advantage_baseline, self.advantage_scaling),
        )
        require(
            self.advantage_baseline == "mean" or self.advantage_scaling != "group",
            "rewards.advantage_scaling",
            "none or batch with leave_one_out (a group's deviation would bring each reward back into its own "
            "baseline)",
            self.advantage_scaling,
        )
        for name, weight in self.weights.items():
            require(weight > 0, f"rewards.weights.{name}", "greater than 0", weight)


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the trainer minimises, and in how many updates a step (formulas: `trainer/losses.py`).

    `mismatch` is none because a synchronous step with one update is on-policy but for the numerics of two
    engines, and those are watched (`policy/mismatch_*`). TRL's default, to mask sequences of a ratio over 3,
    would drop long answers by chance: at 0.05 nats a token, the ratio of 1,000 tokens is off by exp(1.6).
    """

    loss: str = "dapo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: Optional[float] = None
    constant_length: int = 1024
    kl_coef: float = 0.01
    kl_estimator: str = "k3"
    kl_ratio_weighted: bool = False
    entropy_coef: float = 0.0
    epochs: int = 1
    minibatches: int = 1
    mismatch: str = "none"
    mismatch_low: float = 0.0
    mismatch_high: float = 3.0

    def __post_init__(self) -> None:
        section = "trainer.objective"
        one_of(section, self, "loss", "dapo", "grpo", "dr_grpo", "gspo", "cispo")
        one_of(section, self, "kl_estimator", "k1", "k2", "k3")
        modes = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
        one_of(section, self, "mismatch", "none", *modes)
        positive(section, self, "clip_low", "clip_high", "constant_length", "epochs", "minibatches")
        at_least_zero(section, self, "kl_coef", "entropy_coef")
        require(
            self.dual_clip is None or (self.dual_clip > 1 + self.clip_high and self.loss != "cispo"),
            f"{section}.dual_clip",
            "null, or more than 1 + clip_high with a loss other than cispo (which has a cap of its own)",
            self.dual_clip,
        )
        require(
            self.kl_coef == 0 or self.kl_estimator != "k1" or self.kl_ratio_weighted,
            f"{section}.kl_estimator",
            "k2 or k3 unless kl_ratio_weighted is true (the gradient of k1 alone is zero on average)",
            self.kl_estimator,
        )
        require(
            0 <= self.mismatch_low < 1 < self.mismatch_high,
            f"{section}.mismatch_low and mismatch_high",
            "bounds with 1 between them (a ratio of 1 is perfect agreement)",
            (self.mismatch_low, self.mismatch_high),
        )

    @property
    def updates(self) -> int:
        """Optimizer updates in a step."""
        return self.epochs * self.minibatches


@dataclass(frozen=True)
class LoraConfig:
    """A low-rank adapter that is trained in the policy's stead. `rank: 0` trains all weights."""

    rank: int = 0
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )

    def __post_init__(self) -> None:
        at_least_zero("trainer.lora", self, "rank")
        positive("trainer.lora", self, "alpha")
        require(0 <= self.dropout < 1, "trainer.lora.dropout", "in [0, 1)", self.dropout)
        require(len(self.targets) > 0, "trainer.lora.targets", "at least one layer's name", self.targets)


@dataclass(frozen=True)
class LimitsConfig:
    """What a healthy step stays under (null: no limit), and whether passing it warns or stops the run."""

    grad_norm: Optional[float] = None
    kl: Optional[float] = None
    action: str = "warn"

    def __post_init__(self) -> None:
        for name in ("grad_norm", "kl"):
            value = getattr(self, name)
            require(value is None or value > 0, f"trainer.limits.{name}", "null or greater than 0", value)
        one_of("trainer.limits", self, "action", "warn", "stop")


@dataclass(frozen=True)
class TrainerConfig:
    """The DeepSpeed ranks; what they minimise is `objective`."""

    num_ranks: int = 1
    num_cpus: float = 2.0
    num_gpus: float = 0.0
    num_threads: int = 2
    resources: dict[str, float] = field(default_factory=dict)
    dtype: str = "bfloat16"
    zero_stage: int = 2
    offload_optimizer: bool = False
    offload_reference: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    micro_batch_tokens: int = 4096
    share_prompts: bool = True
    gradient_checkpointing: bool = True
    lr: float = 1e-6
    schedule: str = "constant"
    warmup_ratio: float = 0.1
    warmup_steps: Optional[int] = None
    min_lr_ratio: float = 0.0
    ema_decay: float = 0.0
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    start_timeout_s: float = 300.0
    step_timeout_s: float = 1800.0
    collective_timeout_s: float = 300.0
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def __post_init__(self) -> None:
        positive("trainer", self, "num_ranks", "num_threads", "micro_batch_tokens", "lr")
        positive("trainer", self, "max_grad_norm")
        positive("trainer", self, "start_timeout_s", "step_timeout_s", "collective_timeout_s")
        at_least_zero("trainer", self, "num_cpus", "num_gpus", "weight_decay")
        custom_resources("trainer", self.resources)
        one_of("trainer", self, "dtype", "bfloat16", "float32")
        one_of("trainer", self, "zero_stage", 0, 1, 2, 3)
        one_of("trainer", self, "schedule", "constant", "linear", "cosine")
        require(0 <= self.warmup_ratio <= 1, "trainer.warmup_ratio", "in [0, 1]", self.warmup_ratio)
        require(0 <= self.min_lr_ratio <= 1, "trainer.min_lr_ratio", "in [0, 1]", self.min_lr_ratio)
        require(0 <= self.ema_decay < 1, "trainer.ema_decay", "in [0, 1)", self.ema_decay)
        steps = self.warmup_steps
        require(steps is None or steps >= 0, "trainer.warmup_steps", "0 or more, or null", steps)
        for name in ("offload_optimizer", "offload_reference"):
            require(
                self.num_gpus > 0 or not getattr(self, name),
                f"trainer.{name}",
                "false without trainer.num_gpus (there is no device memory to free)",
                getattr(self, name),
            )
        require(
            self.zero_stage > 0 or not self.offload_optimizer,
            "trainer.zero_stage",
            "1, 2 or 3 with trainer.offload_optimizer",
            self.zero_stage,
        )
        require(
            not (self.dtype == "bfloat16" and self.zero_stage == 0),
            "trainer.zero_stage",
            "1, 2 or 3 with bfloat16 (DeepSpeed 0.19 takes a wrong first Adam step at stage 0)",
            self.zero_stage,
        )


@dataclass(frozen=True)
class SyncConfig:
    """Weight sync, trainer to rollout engines."""

    chunk_mb: int = 64
    adapter_only: bool = False
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        positive("sync", self, "chunk_mb", "timeout_s")
