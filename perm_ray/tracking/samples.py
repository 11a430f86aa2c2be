"""What people read: every rollout of a step as one JSON row (`samples/step_000001.jsonl`).

A psychologist asks here why a judge gave a 2; an engineer, why a rollout was masked. Pure: the run
directory writes the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from perm_ray.types import Judgment, Prompt, Rollout, RolloutGroup


def sample_rows(step: int, groups: Sequence[RolloutGroup]) -> list[dict[str, object]]:
    """One row for every rollout, in the order of the groups."""
    return [
        _row(step, group.prompt, rollout, advantage)
        for group in groups
        for rollout, advantage in zip(group.rollouts, group.advantages, strict=True)
    ]


def _row(step: int, prompt: Prompt, rollout: Rollout, advantage: float) -> dict[str, object]:
    completion, reward = rollout.completion, rollout.reward
    return {
        "step": step,
        "scenario_id": completion.scenario_id,
        "index": completion.index,
        "prompt": [{"role": message.role, "content": message.content} for message in prompt.messages],
        "completion": completion.text,
        "analysis": rollout.sections.analysis,
        "response": rollout.sections.response,
        "judgments": {name: _judgment(judgment) for name, judgment in rollout.judgments.items()},
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
        "advantage": advantage,
        "version": completion.version,
        "finish_reason": str(completion.finish_reason),
        "tokens": len(completion.token_ids),
    }


def _judgment(judgment: Judgment) -> dict[str, object]:
    return {
        "score": judgment.score,
        "mass": judgment.mass,
        "distribution": list(judgment.distribution),
        "criteria": dict(judgment.criteria),
        "status": str(judgment.status),
        "reason": judgment.reason,
        "tries": judgment.tries,
        "latency_s": judgment.latency_s,
        "judge": judgment.judge,
        "rubric_digest": judgment.rubric_digest,
    }
