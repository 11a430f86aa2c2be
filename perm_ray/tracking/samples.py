"""What people read: every rollout of a step as one JSON row (`samples/step_000001.jsonl`).

A psychologist asks here why a judge gave a 2; an engineer, why a rollout was masked. Pure: the run
directory writes the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from perm_ray.config.redact import redact_text
from perm_ray.tracking.ambiguous import AmbiguityRule
from perm_ray.types import Judgment, Prompt, Rollout, RolloutGroup


def sample_rows(step: int, groups: Sequence[RolloutGroup], rule: AmbiguityRule) -> list[dict[str, object]]:
    """One row for every rollout, in the order of the groups."""
    return [
        _row(step, group.prompt, rollout, advantage, rule.reasons(rollout))
        for group in groups
        for rollout, advantage in zip(group.rollouts, group.advantages, strict=True)
    ]


def ambiguous_rows(step: int, groups: Sequence[RolloutGroup], rule: AmbiguityRule) -> list[dict[str, object]]:
    """The rows of the most ambiguous rollouts, most ambiguous first."""
    found = [
        (rule.strength(rollout), group.prompt, rollout, advantage, reasons)
        for group in groups
        for rollout, advantage in zip(group.rollouts, group.advantages, strict=True)
        if (reasons := rule.reasons(rollout))
    ]
    found.sort(key=lambda entry: -entry[0])
    return [_row(step, *entry[1:]) for entry in found[: rule.config.list_size]]


def _row(
    step: int, prompt: Prompt, rollout: Rollout, advantage: float, ambiguous: Sequence[str]
) -> dict[str, object]:
    completion, reward = rollout.completion, rollout.reward
    return {
        "step": step,
        "scenario_id": completion.scenario_id,
        "index": completion.index,
        "language": prompt.scenario.language,
        "culture": prompt.scenario.culture,
        "prompt": [{"role": message.role, "content": message.content} for message in prompt.messages],
        "completion": completion.text,
        "analysis": rollout.sections.analysis,
        "response": rollout.sections.response,
        "judgments": {name: judgment_row(judgment) for name, judgment in rollout.judgments.items()},
        "reward": None
        if reward is None
        else {
            "value": reward.value,
            "empathy": reward.empathy,
            "bystander": reward.bystander,
            "length": reward.length,
        },
        "masked": rollout.masked,
        "masked_because": rollout.masked_because,
        "ambiguous": list(ambiguous),
        "advantage": advantage,
        "version": completion.version,
        "finish_reason": str(completion.finish_reason),
        "tokens": len(completion.token_ids),
    }


def judgment_row(judgment: Judgment) -> dict[str, object]:
    """All that is known of one judgment."""
    return {
        "score": judgment.score,
        "sampled": judgment.sampled,
        "mass": judgment.mass,
        "distribution": [round(p, 6) for p in judgment.distribution],
        "entropy": judgment.entropy,
        "spread": judgment.spread,
        "criteria": dict(judgment.criteria),
        "status": str(judgment.status),
        "reason": redact_text(judgment.reason),  # a server may echo what it was sent
        "tries": judgment.tries,
        "latency_s": judgment.latency_s,
        "tokens": asdict(judgment.tokens),
        "judge": judgment.judge,
        "rubric_digest": judgment.rubric_digest,
    }
