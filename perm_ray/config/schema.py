"""The configuration, as typed sections: every key, its default and its bounds.

A component receives its own section, never the whole. Sections are frozen; a value out of bounds
raises `ConfigError` when the section is built. `configs/base.yaml` shows the same keys and defaults
with a comment each (a test keeps the two equal); `load.py` merges files and `a.b=c` overrides.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Optional

from perm_ray.config.redact import redact_text
from perm_ray.errors import ConfigError

BUILTIN_MODEL = "builtin:smollm2-135m-instruct"

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")  # what an environment variable is called, and no key is


def _require(condition: bool, key: str, expected: str, found: object) -> None:
    if not condition:
        raise ConfigError(f"{key} must be {expected}, found {found!r}: change it and start again.")


def _positive(section: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value > 0, f"{section}.{name}", "greater than 0", value)


def _at_least_zero(section: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value >= 0, f"{section}.{name}", "0 or more", value)


def _one_of(section: str, config: object, name: str, *choices: object) -> None:
    value = getattr(config, name)
    expected = "one of " + ", ".join(map(str, choices))
    _require(value in choices, f"{section}.{name}", expected, value)


@dataclass(frozen=True)
class RunConfig:
    """What is run, for how long, and where its files go."""

    name: Optional[str] = None
    dir: str = "runs"
    steps: int = 100
    seed: int = 42
    deterministic: bool = False

    def __post_init__(self) -> None:
        _positive("run", self, "steps")
        if self.name is not None:
            safe = all(c.isalnum() or c in "._-" for c in self.name) and self.name[:1].isalnum()
            _require(safe, "run.name", "letters, digits, '.', '_' and '-' only", self.name)


@dataclass(frozen=True)
class RayConfig:
    """Which Ray cluster: `address: null` starts a private one on this machine."""

    address: Optional[str] = None
    num_cpus: Optional[int] = None
    object_store_gb: float = 1.0
    startup_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        _positive("ray", self, "object_store_gb", "startup_timeout_s")


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
        _positive("prompt", self, "max_tokens")


@dataclass(frozen=True)
class EngineConfig:
    """One kind of vLLM engine and how many of it. On a CPU, give one core to each engine."""

    replicas: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    tensor_parallel_size: int = 1
    dtype: str = "bfloat16"
    max_model_len: int = 2048
    max_num_seqs: int = 64
    kv_cache_gb: Optional[float] = None
    prefix_caching: bool = True
    gpu_memory_utilization: float = 0.85
    enforce_eager: bool = False
    start_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        _positive("engine", self, "replicas", "tensor_parallel_size", "max_model_len")
        _positive("engine", self, "max_num_seqs", "gpu_memory_utilization", "start_timeout_s")
        _at_least_zero("engine", self, "num_cpus", "num_gpus")
        _one_of("engine", self, "dtype", "bfloat16", "float16", "float32")
        _require(
            self.num_gpus > 0 or self.tensor_parallel_size == 1,
            "engine.tensor_parallel_size",
            "1 for an engine without GPUs",
            self.tensor_parallel_size,
        )


@dataclass(frozen=True)
class JudgeEngineConfig(EngineConfig):
    """An engine with a model of its own; rollout engines always hold the policy."""

    model: str = BUILTIN_MODEL


@dataclass(frozen=True)
class JudgeEndpointConfig:
    """Judges that live elsewhere, OpenAI-compatible. A key's variable is named here, never the key."""

    base_url: str = ""
    model: str = ""
    api_key_env: Optional[str] = None
    max_concurrency: int = 16
    rpm: Optional[int] = None
    tpm: Optional[int] = None
    timeout_s: float = 60.0
    max_retries: int = 3
    queue_timeout_s: float = 240.0
    logprobs: bool = False
    structured: str = "none"
    breaker_failures: int = 8
    breaker_cooldown_s: float = 30.0

    def __post_init__(self) -> None:
        section = "judges.endpoints.<name>"
        shown = redact_text(self.base_url)
        at = re.match(r"https?://[^/?#\s]", self.base_url) is not None and shown == self.base_url
        expected = "an address such as http://host:8000/v1, without a password or key in it"
        _require(at, f"{section}.base_url", expected, shown)
        _require(bool(self.model), f"{section}.model", "the model's name at the endpoint", self.model)
        if self.api_key_env is not None:
            named = bool(_VARIABLE.fullmatch(self.api_key_env))
            _require(named, f"{section}.api_key_env", "the NAME of an environment variable", "something else")
        _positive(section, self, "max_concurrency", "timeout_s", "queue_timeout_s")
        _positive(section, self, "breaker_failures", "breaker_cooldown_s")
        _at_least_zero(section, self, "max_retries")
        for name in ("rpm", "tpm"):
            limit = getattr(self, name)
            _require(limit is None or limit > 0, f"{section}.{name}", "greater than 0 or null", limit)
        _one_of(section, self, "structured", "none", "json_schema", "regex")

    @property
    def longest_call_s(self) -> float:
        """The most that one answer may take: its place in the queue and all tries."""
        return self.queue_timeout_s + self.timeout_s * (self.max_retries + 1)


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
        _positive("rollout", self, "prompts_per_step", "max_completion_tokens", "temperature")
        _positive("rollout", self, "top_p", "timeout_s")
        _at_least_zero("rollout", self, "max_resamples")
        _require(
            self.completions_per_prompt >= 2,
            "rollout.completions_per_prompt",
            "2 or more (advantages compare a completion with its group)",
            self.completions_per_prompt,
        )
        _require(self.top_p <= 1, "rollout.top_p", "at most 1", self.top_p)


@dataclass(frozen=True)
class ScoringConfig:
    """How a judge's answer becomes a score: see `perspectives/modes.py`."""

    mode: str = "reasoned"
    max_reason_tokens: int = 96
    num_samples: int = 4
    temperature: float = 1.0
    min_mass: float = 0.2

    def __post_init__(self) -> None:
        section = "judges.pools.<perspective>.scoring"
        _one_of(section, self, "mode", "expected", "reasoned", "sampled")
        _positive(section, self, "max_reason_tokens", "num_samples", "temperature")
        _require(0 <= self.min_mass <= 1, f"{section}.min_mass", "in [0, 1]", self.min_mass)


@dataclass(frozen=True)
class JudgePoolConfig:
    """One perspective's pool. `engine` names an entry of `judges.engines`; pools may share one."""

    engine: str = "judge"
    rubric: Optional[str] = None
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    fence: str = "call"
    max_chars: int = 6000
    max_queue: int = 64
    retries: int = 1
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        section = "judges.pools.<perspective>"
        _positive(section, self, "max_chars", "max_queue", "timeout_s")
        _at_least_zero(section, self, "retries")
        _one_of(section, self, "fence", "call", "group")


def _four_pools() -> dict[str, JudgePoolConfig]:
    names = ("resonation", "expression", "reception", "bystander")
    return {name: JudgePoolConfig(engine=name) for name in names}


def _four_engines() -> dict[str, JudgeEngineConfig]:
    return {name: JudgeEngineConfig() for name in _four_pools()}


@dataclass(frozen=True)
class AmbiguityConfig:
    """When a rollout is listed for people to read; `list_size` is how many a step at most."""

    entropy: float = 0.9
    disagreement: float = 0.5
    list_size: int = 16

    def __post_init__(self) -> None:
        _at_least_zero("judges.ambiguity", self, "entropy", "disagreement", "list_size")


@dataclass(frozen=True)
class JudgesConfig:
    """The judge pools, the engines and endpoints they ask, and how much failure a run bears."""

    engines: dict[str, JudgeEngineConfig] = field(default_factory=_four_engines)
    endpoints: dict[str, JudgeEndpointConfig] = field(default_factory=dict)
    pools: dict[str, JudgePoolConfig] = field(default_factory=_four_pools)
    max_failure_rate: float = 0.5
    failure_window: int = 4
    ambiguity: AmbiguityConfig = field(default_factory=AmbiguityConfig)

    def __post_init__(self) -> None:
        twice = sorted(self.engines.keys() & self.endpoints.keys())
        _require(not twice, "judges.endpoints", "names that no engine has", ", ".join(twice))
        for name, pool in self.pools.items():
            known = ", ".join(sorted(self.engines | self.endpoints)) or "none"
            key = f"judges.pools.{name}.engine"
            there = pool.engine in self.engines or pool.engine in self.endpoints
            _require(there, key, f"one of judges.engines or judges.endpoints ({known})", pool.engine)
            endpoint = self.endpoints.get(pool.engine)
            seen = endpoint is None or endpoint.logprobs or pool.scoring.mode != "expected"
            expected = "reasoned or sampled with an endpoint that gives no logprobs"
            _require(seen, f"judges.pools.{name}.scoring.mode", expected, pool.scoring.mode)
        _positive("judges", self, "failure_window")
        _require(
            0 < self.max_failure_rate <= 1, "judges.max_failure_rate", "in (0, 1]", self.max_failure_rate
        )

    def replicas(self, pool: JudgePoolConfig) -> int:
        """How many judges a pool has: one for each replica of its engine."""
        engine = self.engines.get(pool.engine)
        return engine.replicas if engine else 1

    def model(self, pool: JudgePoolConfig) -> str:
        """Who judges: the model of a pool's engine or endpoint."""
        return (self.engines.get(pool.engine) or self.endpoints[pool.engine]).model


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
        _one_of("rewards", self, "combine", "harmonic", "mean", "geometric")
        _one_of("rewards", self, "missing_section", "floor", "mask")
        _one_of("rewards", self, "truncated", "keep", "mask", "penalise")
        _one_of("rewards", self, "composition", "sum_then_normalize", "normalize_then_sum")
        _one_of("rewards", self, "advantage_baseline", "mean", "leave_one_out")
        _one_of("rewards", self, "advantage_scaling", "group", "batch", "none")
        _at_least_zero("rewards", self, "bystander_coef", "length_coef", "length_free_tokens")
        _positive("rewards", self, "truncated_penalty")
        normalized = self.composition == "normalize_then_sum"
        _require(
            not normalized or (self.advantage_baseline, self.advantage_scaling) == ("mean", "group"),
            "rewards.advantage_baseline and advantage_scaling",
            "mean and group with normalize_then_sum, which normalises by itself",
            (self.advantage_baseline, self.advantage_scaling),
        )
        _require(
            self.advantage_baseline == "mean" or self.advantage_scaling != "group",
            "rewards.advantage_scaling",
            "none or batch with leave_one_out (a group's deviation would bring each reward back into its own "
            "baseline)",
            self.advantage_scaling,
        )
        for name, weight in self.weights.items():
            _require(weight > 0, f"rewards.weights.{name}", "greater than 0", weight)


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the trainer minimises, and in how many updates a step (formulas: `trainer/loss.py`).

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
        _one_of(section, self, "loss", "dapo", "grpo", "dr_grpo", "gspo", "cispo")
        _one_of(section, self, "kl_estimator", "k1", "k2", "k3")
        modes = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
        _one_of(section, self, "mismatch", "none", *modes)
        _positive(section, self, "clip_low", "clip_high", "constant_length", "epochs", "minibatches")
        _at_least_zero(section, self, "kl_coef", "entropy_coef")
        _require(
            self.dual_clip is None or (self.dual_clip > 1 + self.clip_high and self.loss != "cispo"),
            f"{section}.dual_clip",
            "null, or more than 1 + clip_high with a loss other than cispo (which has a cap of its own)",
            self.dual_clip,
        )
        _require(
            self.kl_coef == 0 or self.kl_estimator != "k1" or self.kl_ratio_weighted,
            f"{section}.kl_estimator",
            "k2 or k3 unless kl_ratio_weighted is true (the gradient of k1 alone is zero on average)",
            self.kl_estimator,
        )
        _require(
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
        _at_least_zero("trainer.lora", self, "rank")
        _positive("trainer.lora", self, "alpha")
        _require(0 <= self.dropout < 1, "trainer.lora.dropout", "in [0, 1)", self.dropout)
        _require(len(self.targets) > 0, "trainer.lora.targets", "at least one layer's name", self.targets)


@dataclass(frozen=True)
class LimitsConfig:
    """What a healthy step stays under (null: no limit), and whether passing it warns or stops the run."""

    grad_norm: Optional[float] = None
    kl: Optional[float] = None
    action: str = "warn"

    def __post_init__(self) -> None:
        for name in ("grad_norm", "kl"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"trainer.limits.{name}", "null or greater than 0", value)
        _one_of("trainer.limits", self, "action", "warn", "stop")


@dataclass(frozen=True)
class TrainerConfig:
    """The DeepSpeed ranks; what they minimise is `objective`."""

    num_ranks: int = 1
    num_cpus: float = 2.0
    num_gpus: float = 0.0
    num_threads: int = 2
    dtype: str = "bfloat16"
    zero_stage: int = 2
    offload_optimizer: bool = False
    offload_reference: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    micro_batch_tokens: int = 4096
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
        _positive("trainer", self, "num_ranks", "num_threads", "micro_batch_tokens", "lr")
        _positive("trainer", self, "max_grad_norm")
        _positive("trainer", self, "start_timeout_s", "step_timeout_s", "collective_timeout_s")
        _at_least_zero("trainer", self, "num_cpus", "num_gpus", "weight_decay")
        _one_of("trainer", self, "dtype", "bfloat16", "float32")
        _one_of("trainer", self, "zero_stage", 0, 1, 2, 3)
        _one_of("trainer", self, "schedule", "constant", "linear", "cosine")
        _require(0 <= self.warmup_ratio <= 1, "trainer.warmup_ratio", "in [0, 1]", self.warmup_ratio)
        _require(0 <= self.min_lr_ratio <= 1, "trainer.min_lr_ratio", "in [0, 1]", self.min_lr_ratio)
        _require(0 <= self.ema_decay < 1, "trainer.ema_decay", "in [0, 1)", self.ema_decay)
        steps = self.warmup_steps
        _require(steps is None or steps >= 0, "trainer.warmup_steps", "0 or more, or null", steps)
        for name in ("offload_optimizer", "offload_reference"):
            _require(
                self.num_gpus > 0 or not getattr(self, name),
                f"trainer.{name}",
                "false without trainer.num_gpus (there is no device memory to free)",
                getattr(self, name),
            )
        _require(
            self.zero_stage > 0 or not self.offload_optimizer,
            "trainer.zero_stage",
            "1, 2 or 3 with trainer.offload_optimizer",
            self.zero_stage,
        )
        _require(
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
        _positive("sync", self, "chunk_mb", "timeout_s")


@dataclass(frozen=True)
class ProbeConfig:
    """Probing the judges while training. `every: 0` turns it off; `rise_threshold` is a share of the
    scale: an attack score that has risen by so much since the first time is flagged."""

    every: int = 0
    rise_threshold: float = 0.1

    def __post_init__(self) -> None:
        _at_least_zero("evaluation.probes", self, "every")
        key = "evaluation.probes.rise_threshold"
        _require(0 < self.rise_threshold <= 1, key, "in (0, 1]", self.rise_threshold)


@dataclass(frozen=True)
class EvaluationConfig:
    """The judged reward on held-out scenarios. `num_scenarios: 0` turns it off."""

    num_scenarios: int = 16
    completions_per_prompt: int = 1
    every: int = 0
    probes: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        _at_least_zero("evaluation", self, "num_scenarios", "every")
        _positive("evaluation", self, "completions_per_prompt")


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow. `mlflow_uri: null` is an sqlite file in the run directory."""

    mlflow: bool = True
    mlflow_uri: Optional[str] = None
    experiment: str = "perm_ray"


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints every `every` steps (0: only the last one), and which of them are kept: the newest
    `keep`, those of every `keep_every`-th step, and the `keep_best` with the highest held-out reward."""

    every: int = 50
    keep: int = 2
    keep_every: int = 0
    keep_best: int = 0

    def __post_init__(self) -> None:
        _at_least_zero("checkpoint", self, "every", "keep_every", "keep_best")
        _positive("checkpoint", self, "keep")


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
        _require(
            needed <= length,
            "rollout.engine.max_model_len",
            f"at least prompt.max_tokens + rollout.max_completion_tokens = {needed}",
            length,
        )

        completions = self.rollout.prompts_per_step * self.rollout.completions_per_prompt
        _require(
            self.trainer.objective.minibatches <= completions,
            "trainer.objective.minibatches",
            f"at most the completions of a step, {completions}",
            self.trainer.objective.minibatches,
        )
        _require(
            (self.rollout.engine.num_gpus > 0) == (self.trainer.num_gpus > 0),
            "trainer.num_gpus",
            "0 or more than 0 together with rollout.engine.num_gpus (weights go from one to the other)",
            self.trainer.num_gpus,
        )
        adapter_only = self.sync.adapter_only
        _require(
            not adapter_only or (self.trainer.lora.rank > 0 and self.trainer.num_gpus == 0),
            "sync.adapter_only",
            "false unless trainer.lora.rank is set, and on GPUs (their transfer takes whole weights)",
            adapter_only,
        )
        evaluated = self.evaluation.every if self.evaluation.num_scenarios else 0
        _require(
            not self.checkpoint.keep_best or (evaluated > 0 and self.checkpoint.every % evaluated == 0),
            "checkpoint.keep_best",
            "0 unless evaluation.every is set and checkpoint.every is a multiple of it (the best is the one "
            "with the highest held-out reward)",
            self.checkpoint.keep_best,
        )

    def as_dict(self) -> dict[str, object]:
        """The configuration as plain nested values, for files and reports."""
        return dataclasses.asdict(self)
