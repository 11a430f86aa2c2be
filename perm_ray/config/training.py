"""The sections of learning: the reward, the trainer's objective and ranks, and weight sync."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from perm_ray.config.engines import DTYPE, custom_resources, fast_dtype
from perm_ray.config.section import Bool, Float, Int, Positive, require, section


@section("rewards")
class RewardConfig:
    """PERM's reward: empathy + bystander + length (arXiv 2601.10532)."""

    combine: Literal["harmonic", "mean", "geometric"] = Field(
        default="harmonic", description="mean of the three empathy scores"
    )
    weights: dict[str, Positive] = Field(
        default_factory=dict,
        description="weight of each perspective in it, e.g. {reception: 2.0}; 1.0 if not named",
    )
    bystander_coef: Float = Field(default=0.5, ge=0, description="bystander = coef * (total / 100 - 1)")
    length_coef: Float = Field(
        default=0.001, ge=0, description="length penalty per token beyond the free ones"
    )
    length_free_tokens: Int = Field(default=768, ge=0, description="tokens without a length penalty")
    missing_section: Literal["floor", "mask"] = Field(
        default="floor", description="an answer without both sections: the lowest score, or no training on it"
    )
    score_map: str | None = Field(
        default=None,
        min_length=1,
        description="file of `perm-ray judge calibrate --fit-map`: rewards of scores as people give them",
    )
    truncated: Literal["keep", "mask", "penalise"] = Field(
        default="keep", description="an answer truncated at max_completion_tokens"
    )
    truncated_penalty: Float = Field(default=0.5, gt=0, description="penalty of penalise")
    composition: Literal["sum_then_normalize", "normalize_then_sum"] = Field(
        default="sum_then_normalize",
        description="normalise the summed reward, or each part in its group (GDPO)",
    )
    advantage_baseline: Literal["mean", "leave_one_out"] = Field(
        default="mean",
        description="baseline of the advantage: the group's mean, or of the others in it (RLOO)",
    )
    advantage_scaling: Literal["group", "batch", "none"] = Field(
        default="group", description="divide by the standard deviation of the group, of the batch, or not"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        chosen = (self.advantage_baseline, self.advantage_scaling)
        require(
            self.composition == "sum_then_normalize" or chosen == ("mean", "group"),
            "advantage_baseline and advantage_scaling",
            "mean and group with normalize_then_sum, which normalises by itself",
            chosen,
        )
        require(
            chosen != ("leave_one_out", "group"),
            "advantage_scaling",
            "none or batch with leave_one_out (a group's deviation would bring each reward back into its own "
            "baseline)",
            self.advantage_scaling,
        )
        return self


@section("trainer.objective")
class ObjectiveConfig:
    """The loss, and in how many updates a step it is minimised (formulas: `trainer/losses.py`).

    `mismatch` is none because a synchronous step with one update is on-policy but for the numerics of two
    engines, and those are watched (`policy/mismatch_*`). TRL's default, to mask sequences of a ratio over 3,
    would drop long answers by chance: at 0.05 nats a token, the ratio of 1,000 tokens is off by exp(1.6).
    """

    loss: Literal["dapo", "grpo", "dr_grpo", "gspo", "cispo"] = Field(
        default="dapo", description="policy loss"
    )
    clip_low: Float = Field(default=0.2, gt=0, description="the ratio is clipped below 1 - clip_low")
    clip_high: Float = Field(default=0.2, gt=0, description="and above 1 + clip_high")
    dual_clip: Float | None = Field(
        default=None, description="cap of the ratio where the advantage is negative; null: none"
    )
    constant_length: Int = Field(
        default=1024, gt=0, description="divisor of dr_grpo; as a rule rollout.max_completion_tokens"
    )
    kl_coef: Float = Field(
        default=0.01,
        ge=0,
        description="weight of the KL divergence from the reference model; 0: no reference",
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field(default="k3", description="estimator of that divergence")
    kl_ratio_weighted: Bool = Field(
        default=False, description="weigh it by the ratio, which makes its gradient right off-policy"
    )
    entropy_coef: Float = Field(default=0.0, ge=0, description="weight of the entropy bonus")
    epochs: Int = Field(default=1, gt=0, description="passes over a step's rollouts")
    minibatches: Int = Field(default=1, gt=0, description="updates in each pass")
    mismatch: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = Field(
        default="none", description="sampler against trainer"
    )
    mismatch_low: Float = Field(default=0.0, ge=0, lt=1, description="lower bound of that ratio")
    mismatch_high: Float = Field(default=3.0, gt=1, description="upper bound of that ratio")

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(
            self.dual_clip is None or (self.dual_clip > 1 + self.clip_high and self.loss != "cispo"),
            "dual_clip",
            "null, or more than 1 + clip_high with a loss other than cispo (which has a cap of its own)",
            self.dual_clip,
        )
        require(
            self.kl_coef == 0 or self.kl_estimator != "k1" or self.kl_ratio_weighted,
            "kl_estimator",
            "k2 or k3 unless kl_ratio_weighted is true (the gradient of k1 alone is zero on average)",
            self.kl_estimator,
        )
        return self

    @property
    def updates(self) -> int:
        """Optimizer updates in a step."""
        return self.epochs * self.minibatches


@section("trainer.lora")
class LoraConfig:
    """A low-rank adapter that is trained in the policy's stead. `rank: 0` trains all weights."""

    rank: Int = Field(default=0, ge=0, description="rank of the adapter; 0: all weights are trained")
    alpha: Float = Field(default=32.0, gt=0, description="the adapter is scaled by alpha / rank")
    dropout: Float = Field(default=0.0, ge=0, lt=1, description="dropout of the adapter's input in training")
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="layers that get one",
    )


@section("trainer.limits")
class LimitsConfig:
    """Limits of a healthy step (null: no limit), and whether passing one warns or stops the run."""

    grad_norm: Float | None = Field(default=None, gt=0, description="gradient norm before clipping")
    kl: Float | None = Field(default=None, gt=0, description="KL divergence from the reference model")
    logprob_diff: Float | None = Field(
        default=None,
        gt=0,
        description="mean difference of log-probabilities between sampler and trainer, in nats",
    )
    action: Literal["warn", "stop"] = Field(
        default="warn", description="past a limit: warn, or stop and leave the batch to be replayed"
    )


@section("trainer")
class TrainerConfig:
    """The DeepSpeed ranks; what they minimise is `objective`."""

    num_ranks: Int = Field(default=1, gt=0, description="DeepSpeed ranks (data parallel)")
    num_cpus: Float = Field(default=2.0, ge=0, description="cores of each rank")
    num_gpus: Float = Field(default=0.0, ge=0, description="GPUs of each rank")
    num_threads: Int = Field(default=2, gt=0, description="torch threads of each rank")
    resources: dict[str, Positive] = Field(
        default_factory=dict, description="custom Ray resources that each rank takes, e.g. {trainer: 1}"
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(default="auto", description=DTYPE)
    zero_stage: Literal[0, 1, 2, 3] = Field(default=2, description="ZeRO stage; 0 with float32 only")
    offload_optimizer: Bool = Field(
        default=False, description="offload the optimizer's state to host memory; GPUs only"
    )
    offload_reference: Bool = Field(
        default=False, description="offload the reference model to host memory between uses; GPUs only"
    )
    lora: LoraConfig = Field(default_factory=LoraConfig, description="adapter in place of all weights")
    micro_batch_tokens: Int = Field(default=4096, gt=0, description="tokens in one forward and backward pass")
    share_prompts: Bool = Field(default=True, description="compute a prompt once for its completions")
    gradient_checkpointing: Bool = Field(default=True, description="less memory, a third more time")
    lr: Float = Field(default=1e-6, gt=0, description="peak learning rate of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="learning rate schedule after the warm-up"
    )
    warmup_ratio: Float = Field(default=0.1, ge=0, le=1, description="share of the steps that is warm-up")
    warmup_steps: Int | None = Field(default=None, ge=0, description="warm-up steps; null: by warmup_ratio")
    min_lr_ratio: Float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="final learning rate of linear and cosine, as a share of the peak",
    )
    ema_decay: Float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of a moving average of the weights, which is exported; 0: none",
    )
    weight_decay: Float = Field(default=0.0, ge=0, description="of AdamW; norms and biases have none")
    adam_betas: tuple[Float, Float] = Field(default=(0.9, 0.999), description="betas of AdamW")
    max_grad_norm: Float = Field(default=1.0, gt=0, description="gradient clipping: the largest norm")
    limits: LimitsConfig = Field(default_factory=LimitsConfig, description="limits of a healthy step")
    start_timeout_s: Float = Field(default=300.0, gt=0, description="timeout for loading the model")
    step_timeout_s: Float = Field(default=1800.0, gt=0, description="timeout of one training step")
    collective_timeout_s: Float = Field(default=300.0, gt=0, description="timeout of a collective operation")
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="loss and updates")

    @model_validator(mode="after")
    def _check(self) -> Self:
        custom_resources(self.resources)
        if self.dtype == "auto":
            dtype = "float32" if self.zero_stage == 0 else fast_dtype(self.num_gpus)
            object.__setattr__(self, "dtype", dtype)
        for name in ("offload_optimizer", "offload_reference"):
            value = getattr(self, name)
            expected = "false without trainer.num_gpus (there is no device memory to free)"
            require(self.num_gpus > 0 or not value, name, expected, value)
        require(
            self.zero_stage > 0 or not self.offload_optimizer,
            "zero_stage",
            "1, 2 or 3 with trainer.offload_optimizer",
            self.zero_stage,
        )
        require(
            not (self.dtype == "bfloat16" and self.zero_stage == 0),
            "zero_stage",
            "1, 2 or 3 with bfloat16 (DeepSpeed 0.19 takes a wrong first Adam step at stage 0)",
            self.zero_stage,
        )
        alone = self.num_gpus < 1 and self.num_ranks == 1
        expected = (
            "a whole number, or a fraction of one with num_ranks=1 (NCCL takes one process for each GPU)"
        )
        require(self.num_gpus % 1 == 0 or alone, "num_gpus", expected, self.num_gpus)
        return self


@section("finetune")
class FinetuneConfig:
    """Supervised learning from demonstrations or ratings: `perm-ray finetune`, `perm-ray judge train`."""

    data: str = Field(default="builtin:demos", min_length=1, description="JSONL file, or a built-in set")
    epochs: Int = Field(default=3, gt=0, description="passes over the data")
    batch_size: Int = Field(default=32, gt=0, description="examples in one update, about")
    max_tokens: Int = Field(default=1024, gt=0, description="the longest example, its prompt included")
    heldout_share: Float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="share of the scenarios that only measures, where the data do not say which; 0: none",
    )
    scenarios: Literal["all", "first_half", "second_half"] = Field(
        default="all",
        description="the training scenarios to learn from (halves make judges that differ)",
    )
    every: Int = Field(default=0, ge=0, description="held-out loss every so many steps; 0: before and after")


@section("sync")
class SyncConfig:
    """Weight sync, trainer to rollout engines."""

    backend: Literal["auto", "nccl", "gloo"] = Field(
        default="auto",
        description="auto: NCCL between GPUs; gloo on CPUs and if the trainer shares its GPU",
    )
    chunk_mb: Int = Field(default=64, gt=0, description="chunk size of gloo's transfer")
    adapter_only: Bool = Field(
        default=False,
        description="send the LoRA adapter only, which each engine merges into its copy; by gloo only",
    )
    timeout_s: Float = Field(default=120.0, gt=0, description="timeout of a whole weight sync")
