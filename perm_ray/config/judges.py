"""The sections of judging: which model judges, how an answer becomes a score, how much failure is borne."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from perm_ray.config.section import Float, Int, section


@section("judges.pools.<perspective>.scoring")
class ScoringConfig:
    """The way from a judge's answer to a score: see `judges/modes.py`."""

    mode: Literal["expected", "reasoned", "sampled"] = Field(
        default="reasoned",
        description="one token, a reason first, or several answers",
    )
    max_reason_tokens: Int = Field(default=96, gt=0, description="token limit of a reason (reasoned)")
    num_samples: Int = Field(default=4, gt=0, description="answers to each question (sampled)")
    temperature: Float = Field(default=1.0, gt=0, description="sampling temperature of answers in words")
    min_mass: Float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="probability of valid scores below which an answer is unparseable",
    )


@section("judges.pools.<perspective>")
class JudgePoolConfig:
    """One perspective's pool. `model` names an entry of `models`; pools may share one."""

    model: str = Field(default="judge", description="entry of `models` that it asks; pools may share one")
    rubric: str | None = Field(default=None, min_length=1, description="rubric file; null: built in")
    scoring: ScoringConfig = Field(default_factory=ScoringConfig, description="from an answer to a score")
    fence: Literal["call", "group"] = Field(default="call", description="new text delimiter for each")
    max_chars: Int = Field(default=6000, gt=0, description="a longer text is truncated before judging")
    max_queue: Int = Field(
        default=64,
        gt=0,
        description="queue length at which a group leaves the replica that has its prefix cached",
    )
    retries: Int = Field(default=1, ge=0, description="retries of a judgment that failed")
    timeout_s: Float = Field(
        default=300.0,
        gt=0,
        description="timeout of one call: a completion, or a whole step when deterministic",
    )


@section("judges.ambiguity")
class AmbiguityConfig:
    """When a rollout is listed for people to read, in samples/ambiguous_*.jsonl."""

    entropy: Float = Field(default=0.9, ge=0, description="a judge's entropy, as a share of the uniform one")
    disagreement: Float = Field(
        default=0.5, ge=0, description="spread between empathy perspectives, as a share of the scale"
    )
    list_size: Int = Field(default=16, ge=0, description="rollouts a step at most, most ambiguous first")


def _four_pools() -> dict[str, JudgePoolConfig]:
    names = ("resonation", "expression", "reception", "bystander")
    return {name: JudgePoolConfig() for name in names}


@section("judges")
class JudgesConfig:
    """The judge pools, one for each perspective, and how much failure a run tolerates."""

    pools: dict[str, JudgePoolConfig] = Field(
        default_factory=_four_pools, description="one for each perspective; null removes a default one"
    )
    max_failure_rate: Float = Field(
        default=0.5, gt=0, le=1, description="share of a perspective's judgments above which the run stops"
    )
    failure_window: Int = Field(default=4, gt=0, description="steps that this share is taken over")
    ambiguity: AmbiguityConfig = Field(
        default_factory=AmbiguityConfig, description="rollouts listed for people to read"
    )
