"""The sections of what is recorded: evaluation, tracking and checkpoints."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from perm_ray.config.section import Bool, Float, Int, require, section


@section("evaluation.probes")
class ProbeConfig:
    """Attacks and plain cases that test the judges (`perm-ray judge probe`)."""

    every: Int = Field(default=0, ge=0, description="before training and every so many steps; 0: never")
    rise_threshold: Float = Field(
        default=0.1,
        gt=0,
        le=1,
        description="rise of an attack's score that is flagged, as a share of the scale",
    )


@section("evaluation")
class EvaluationConfig:
    """The judged reward on held-out scenarios."""

    num_scenarios: Int = Field(
        default=16, ge=0, description="held-out scenarios judged before and after training; 0: no evaluation"
    )
    completions_per_prompt: Int = Field(default=1, gt=0, description="answers to each")
    every: Int = Field(
        default=0,
        ge=0,
        description="also every so many steps, the best policy kept; 0: only before and after",
    )
    judge_model: str | None = Field(
        default=None,
        description="entry of models that grades the held-out answers; null: the judges that reward",
    )
    truth: Bool = Field(
        default=False,
        description="`perm-ray train` also asks builtin:truth in the end, before and after training",
    )
    probes: ProbeConfig = Field(default_factory=ProbeConfig, description="attacks that test the judges")


@section("tracking.samples")
class SamplesConfig:
    """Rollouts shown in MLflow as traces that people can rate."""

    every: Int = Field(default=10, ge=0, description="steps between them; 0: never")
    count: Int = Field(default=12, gt=0, description="rollouts each time")


@section("tracking")
class TrackingConfig:
    """MLflow."""

    mlflow: Bool = Field(default=True, description="track the run in MLflow")
    mlflow_uri: str | None = Field(
        default=None,
        min_length=1,
        description="server or database; null: an sqlite file in the run directory",
    )
    experiment: str = Field(default="perm_ray", min_length=1, description="the MLflow experiment")
    samples: SamplesConfig = Field(default_factory=SamplesConfig, description="rollouts shown as traces")
    register_model: str | None = Field(
        default=None, description="registered model that the final policy becomes a version of; null: none"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        name = self.register_model
        plain = name is None or (bool(name.strip()) and not set(name) & set("/:"))
        require(plain, "register_model", "null, or a name without '/' and ':'", name)
        require(bool(self.experiment.strip()), "experiment", "text that is not empty", self.experiment)
        return self


@section("checkpoint")
class CheckpointConfig:
    """When checkpoints are written, and which of them are kept."""

    every: Int = Field(default=50, ge=0, description="steps between checkpoints; 0: only the last")
    keep: Int = Field(default=2, gt=0, description="newest checkpoints that are kept")
    keep_every: Int = Field(default=0, ge=0, description="and those of every so many steps; 0: no others")
    keep_best: Int = Field(
        default=0,
        ge=0,
        description="and so many with the highest held-out reward (evaluation.every); 0: no others",
    )
