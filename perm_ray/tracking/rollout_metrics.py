"""A step's rollouts as numbers: reward, judges, format, lengths. Pure.

A mean over nothing is absent, neither 0 nor NaN: a step in which a judge was down has a gap in its
curve, and the count beside it says why.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from perm_ray.judges.guard import removed
from perm_ray.types import NO_TOKENS, Judgment, Rollout, RolloutGroup, Sections, Status


def rollout_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Return every metric of a step that follows from its rollouts, under its MLflow name."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return {
        **_reward_metrics(rollouts),
        **_judge_metrics(rollouts),
        **_mean("format/valid", [rollout.sections.valid for rollout in rollouts]),
        **_mean("guard/removed", [_speaks_markup(rollout.sections) for rollout in rollouts]),
        **_rollout_metrics(rollouts),
        "group/zero_variance": float(sum(group.zero_variance for group in groups)),
    }


def _reward_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    values = [reward.value for reward in rewards]
    return {
        **_mean("reward/mean", values),
        **_std("reward/std", values),
        **_mean("reward/empathy", [reward.empathy for reward in rewards]),
        **_mean("reward/bystander", [reward.bystander for reward in rewards]),
        **_mean("reward/length", [reward.length for reward in rewards]),
    }


def _judge_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    by_perspective: dict[str, list[Judgment]] = {}
    for rollout in rollouts:
        for name, judgment in rollout.judgments.items():
            by_perspective.setdefault(name, []).append(judgment)
    metrics: dict[str, float] = {}
    for name, judgments in by_perspective.items():
        scored = [judgment for judgment in judgments if judgment.status == Status.OK]
        scores = [judgment.score for judgment in scored if judgment.score is not None]
        masses = [judgment.mass for judgment in scored if judgment.mass is not None]
        count = Counter(judgment.status for judgment in judgments)
        metrics |= _mean(f"judge/{name}/mean", scores)
        metrics |= _std(f"judge/{name}/std", scores)
        metrics |= _mean(f"judge/{name}/mass", masses)
        metrics |= _mean(
            f"judge/{name}/entropy",
            [judgment.entropy for judgment in scored if judgment.entropy is not None],
        )
        metrics |= _cost(name, judgments)
        # Every judgment that should be there and is not; the unparseable among them on their own too.
        metrics[f"judge/{name}/failed"] = float(count[Status.FAILED] + count[Status.UNPARSEABLE])
        metrics[f"judge/{name}/unparseable"] = float(count[Status.UNPARSEABLE])
        metrics[f"judge/{name}/skipped"] = float(count[Status.SKIPPED])
    return metrics


def _speaks_markup(sections: Sections) -> bool:
    """Return whether an answer tries to speak to its judges in their own markup, which the guard takes
    out."""
    return any(removed(text) > 0 for text in (sections.analysis, sections.response) if text)


def _cost(name: str, judgments: Sequence[Judgment]) -> dict[str, float]:
    """Return what the judgments cost: tokens, the share of their prompts that a cache held, and time each."""
    tokens = sum((judgment.tokens for judgment in judgments), NO_TOKENS)
    asked = [judgment.latency_s for judgment in judgments if judgment.tries]
    metrics = {f"judge/{name}/tokens": float(tokens.prompt + tokens.completion)}
    if tokens.prompt:
        metrics[f"judge/{name}/cache_hit"] = tokens.cached / tokens.prompt
    return metrics | _mean(f"judge/{name}/latency_s", asked)


def _rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
    return {
        "rollout/completions": float(len(rollouts)),
        "rollout/tokens": float(sum(lengths)),
        **_mean("rollout/length_mean", lengths),
        **_mean("rollout/truncated", [rollout.completion.truncated for rollout in rollouts]),
        # ok + masked = completions, on every step.
        "rollout/ok": float(sum(not rollout.masked for rollout in rollouts)),
        "rollout/masked": float(sum(rollout.masked for rollout in rollouts)),
    }


def _mean(name: str, values: Sequence[float]) -> dict[str, float]:
    return {name: math.fsum(values) / len(values)} if values else {}


def _std(name: str, values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    mean = math.fsum(values) / len(values)
    return {name: math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))}
