"""The configuration, as typed sections: every key, its default, its bounds and what it is for.

A component receives its own section, never the whole. Sections are frozen; a value out of bounds raises
`ConfigError`, also when `dataclasses.replace` copies a section. `configs/base.yaml` and the reference page
are written from here by `python -m docs.generate`; `load.py` merges files and overrides.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Self

from pydantic import Field, model_validator

from perm_ray.config.engines import BUILTIN_MODEL, EndpointModel, EngineConfig, EngineModel, Model
from perm_ray.config.judges import JudgePoolConfig, JudgesConfig
from perm_ray.config.records import CheckpointConfig, EvaluationConfig, TrackingConfig
from perm_ray.config.section import Bool, Float, Int, require, section
from perm_ray.config.training import FinetuneConfig, RewardConfig, SyncConfig, TrainerConfig


@section("run")
class RunConfig:
    """The name of a run, its length, its seed and its directory."""

    name: str | None = Field(
        default=None, description="name of the run and of its directory; null: perm-<date>-<time>"
    )
    dir: str = Field(default="runs", min_length=1, description="where run directories are made")
    steps: Int = Field(default=100, gt=0, description="training steps")
    seed: Int = Field(default=42, ge=0, lt=2**31, description="of sampling, data order, initial states")
    deterministic: Bool = Field(default=False, description="bitwise reproducible on a CPU, and slower")

    @model_validator(mode="after")
    def _check(self) -> Self:
        name = self.name
        safe = name is None or (all(c.isalnum() or c in "._-" for c in name) and name[:1].isalnum())
        require(safe, "name", "null, or letters, digits, '.', '_' and '-' only", name)
        return self


@section("ray")
class RayConfig:
    """The Ray cluster: `address: null` starts a private one on this machine."""

    address: str | None = Field(
        default=None, min_length=1, description='cluster to join, such as "auto"; null: a private one'
    )
    num_cpus: Int | None = Field(
        default=None, description="CPU slots of the private cluster; null: as many as the actors ask for"
    )
    object_store_gb: Float = Field(default=1.0, gt=0, description="object store of the private cluster")
    startup_timeout_s: Float = Field(
        default=300.0, gt=0, description="timeout for the cluster to have what the run asks for"
    )
    layout: Literal["separate", "colocated"] = Field(
        default="separate",
        description="each pool by itself, or replica i of all pools on a node",
    )
    share_gpus: Bool = Field(default=False, description="engines may ask for a fraction of a GPU")


@section("policy")
class PolicyConfig:
    """The model that is trained."""

    model: str = Field(default=BUILTIN_MODEL, min_length=1, description="built-in name, folder or hub id")


@section("data")
class DataConfig:
    """Scenario files (JSONL), or `builtin:train` and `builtin:heldout`."""

    train: str = Field(default="builtin:train", min_length=1, description="training scenarios")
    heldout: str = Field(
        default="builtin:heldout", min_length=1, description="scenarios of the evaluation, never trained on"
    )


@section("prompt")
class PromptConfig:
    """The prompt that the policy gets for a scenario."""

    template: str | None = Field(default=None, min_length=1, description="template file; null: built in")
    prefix: str = Field(default="", description='prefill of the answer ("# Analysis" helps a small model)')
    max_tokens: Int = Field(default=1024, gt=0, description="the longest prompt, in tokens")
    enable_thinking: Bool | None = Field(default=None, description="for the chat template; null: its default")


@section("rollout")
class RolloutConfig:
    """The amount that is sampled each step, and the engines that sample."""

    prompts_per_step: Int = Field(default=8, gt=0, description="scenarios in a step")
    completions_per_prompt: Int = Field(default=8, description="group size: the answers to each scenario")
    max_completion_tokens: Int = Field(default=1024, gt=0, description="an answer is truncated there")
    max_resamples: Int = Field(
        default=0, ge=0, description="rounds that replace groups of equal rewards by further prompts"
    )
    temperature: Float = Field(default=1.0, gt=0, description="sampling temperature")
    top_p: Float = Field(default=1.0, gt=0, le=1, description="nucleus sampling; below 1 is slow on a CPU")
    timeout_s: Float = Field(default=900.0, gt=0, description="timeout of all completions of a step")
    engine: EngineConfig = Field(default_factory=EngineConfig, description="the vLLM engines that sample")

    @model_validator(mode="after")
    def _check(self) -> Self:
        expected = "2 or more (advantages compare a completion with its group)"
        size = self.completions_per_prompt
        require(size >= 2, "completions_per_prompt", expected, size)
        return self


def _one_model() -> dict[str, Model]:
    return {"judge": EngineModel()}


@section("")
class Config:
    """The whole configuration. Hand a component its own section, unless it asks models by name."""

    run: RunConfig = Field(default_factory=RunConfig, description="name, length, seed and directory")
    ray: RayConfig = Field(default_factory=RayConfig, description="the Ray cluster")
    models: dict[str, Model] = Field(
        default_factory=_one_model,
        description="models that are asked by name; started only when somebody asks",
    )
    policy: PolicyConfig = Field(default_factory=PolicyConfig, description="the model that is trained")
    data: DataConfig = Field(default_factory=DataConfig, description="scenario files (JSONL)")
    prompt: PromptConfig = Field(default_factory=PromptConfig, description="the policy's prompt")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="sampling")
    judges: JudgesConfig = Field(default_factory=JudgesConfig, description="judge pools")
    rewards: RewardConfig = Field(default_factory=RewardConfig, description="from judgments to advantages")
    trainer: TrainerConfig = Field(default_factory=TrainerConfig, description="DeepSpeed ranks")
    finetune: FinetuneConfig = Field(
        default_factory=FinetuneConfig, description="supervised learning; `train` does not read it"
    )
    sync: SyncConfig = Field(
        default_factory=SyncConfig, description="weight sync, trainer to rollout engines"
    )
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="held-out reward")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="MLflow")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="checkpoints")

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_pools()
        self._check_gpus()
        rollout, trainer, lora = self.rollout, self.trainer, self.trainer.lora
        needed, length = self.prompt.max_tokens + rollout.max_completion_tokens, rollout.engine.max_model_len
        expected = f"at least prompt.max_tokens + rollout.max_completion_tokens = {needed}"
        require(needed <= length, "rollout.engine.max_model_len", expected, length)
        completions, minibatches = (
            rollout.prompts_per_step * rollout.completions_per_prompt,
            trainer.objective.minibatches,
        )
        expected = f"at most the completions of a step, {completions}"
        require(minibatches <= completions, "trainer.objective.minibatches", expected, minibatches)
        require(
            not self.sync.adapter_only or (lora.rank > 0 and self.transfer_backend == "gloo"),
            "sync.adapter_only",
            "false unless trainer.lora.rank is set, and by NCCL (sync.backend), which takes whole weights",
            self.sync.adapter_only,
        )
        evaluated = self.evaluation.every if self.evaluation.num_scenarios else 0
        require(
            not self.checkpoint.keep_best or (evaluated > 0 and self.checkpoint.every % evaluated == 0),
            "checkpoint.keep_best",
            "0 unless evaluation.every is set and checkpoint.every is a multiple of it (the best is the one "
            "with the highest held-out reward)",
            self.checkpoint.keep_best,
        )
        return self

    def _check_pools(self) -> None:
        """Refuse a pool whose model is not there, or cannot do what its scoring asks for."""
        for name, pool in self.judges.pools.items():
            key, known = f"judges.pools.{name}", ", ".join(sorted(self.models)) or "none"
            require(pool.model in self.models, f"{key}.model", f"one of models ({known})", pool.model)
            model, mode = self.models[pool.model], pool.scoring.mode
            seen = isinstance(model, EngineModel) or model.logprobs or mode != "expected"
            expected = "reasoned or sampled with an endpoint that gives no logprobs"
            require(seen, f"{key}.scoring.mode", expected, mode)
        grader = self.evaluation.judge_model
        known = ", ".join(sorted(self.models)) or "none"
        is_known = grader is None or grader in self.models
        require(is_known, "evaluation.judge_model", f"null or one of models ({known})", grader)
        model = self.models.get(grader or "")
        asked = {pool.scoring.mode for pool in self.judges.pools.values()}
        blind = isinstance(model, EndpointModel) and not model.logprobs and "expected" in asked
        expected = "a model that gives log-probabilities, for the pools whose scoring.mode is expected"
        require(not blind, "evaluation.judge_model", expected, grader)

    def _check_gpus(self) -> None:
        """Refuse a GPU's fraction unless shared on purpose, and a trainer on other devices than sampling."""
        rollout, trainer = self.rollout.engine, self.trainer
        expected = "0 or more than 0 together with rollout.engine.num_gpus (weights go from one to the other)"
        both = (rollout.num_gpus > 0) == (trainer.num_gpus > 0)
        require(both, "trainer.num_gpus", expected, trainer.num_gpus)
        require(
            trainer.num_gpus >= 1 or self.sync.backend != "nccl",
            "sync.backend",
            "auto or gloo unless trainer.num_gpus is 1 (NCCL takes one process for each GPU)",
            self.sync.backend,
        )
        engines = {f"models.{name}": engine for name, engine in self.judge_engines.items()}
        for key, gpus in {
            "rollout.engine": rollout.num_gpus,
            "trainer": trainer.num_gpus,
            **{key: engine.num_gpus for key, engine in engines.items()},
        }.items():
            require(
                gpus % 1 == 0 or self.ray.share_gpus,
                f"{key}.num_gpus",
                "a whole number unless ray.share_gpus is true (lower each engine's "
                "gpu_memory_utilization, too: the memory is shared as well)",
                gpus,
            )

    @property
    def transfer_backend(self) -> Literal["nccl", "gloo"]:
        """Return how weights go from the trainer to rollout engines."""
        if self.sync.backend != "auto":
            return self.sync.backend
        return "nccl" if self.trainer.num_gpus >= 1 else "gloo"

    @property
    def judge_engines(self) -> dict[str, EngineModel]:
        """Return the engines of ours that some pool or the evaluation asks, by name, in the order of
        `models`."""
        return {name: each for name, each in self._asked() if isinstance(each, EngineModel)}

    @property
    def judge_endpoints(self) -> dict[str, EndpointModel]:
        """Return the endpoints that some pool or the evaluation asks, by name, in the order of `models`."""
        return {name: each for name, each in self._asked() if isinstance(each, EndpointModel)}

    @property
    def grading_pools(self) -> dict[str, JudgePoolConfig]:
        """Return the judge pools as `evaluation.judge_model` answers for them; none when it is null."""
        model = self.evaluation.judge_model
        if model is None or not self.evaluation.num_scenarios:
            return {}
        return {name: dataclasses.replace(pool, model=model) for name, pool in self.judges.pools.items()}

    def model_of(self, pool: JudgePoolConfig) -> EngineModel | EndpointModel:
        """Return the model that a pool asks; its name there is `model_of(pool).model`."""
        return self.models[pool.model]

    def replicas_of(self, pool: JudgePoolConfig) -> int:
        """Return how many judges a pool has: one for each replica of its engine, one for an endpoint."""
        model = self.model_of(pool)
        return model.replicas if isinstance(model, EngineModel) else 1

    def as_dict(self) -> dict[str, object]:
        """Return the configuration as plain nested values, for files and reports."""
        return dataclasses.asdict(self)

    def _asked(self) -> list[tuple[str, EngineModel | EndpointModel]]:
        pools = (*self.judges.pools.values(), *self.grading_pools.values())
        asked = {pool.model for pool in pools}
        return [(name, model) for name, model in self.models.items() if name in asked]
