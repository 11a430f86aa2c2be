"""A step's metrics and the rows that people read, from rollouts made by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from perm_ray.config.judges import AmbiguityConfig
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, load_perspective
from perm_ray.tracking.ambiguous import AmbiguityRule
from perm_ray.tracking.rollout_metrics import rollout_metrics
from perm_ray.tracking.samples import parse_row, plain_row, sample_rows
from perm_ray.types import (
    Completion,
    FinishReason,
    Judgment,
    Message,
    Prompt,
    Reward,
    Rollout,
    RolloutGroup,
    Scenario,
    Sections,
    Status,
    TokenUsage,
    Turn,
)
from tests.support.fakes import fake_span

RULE = AmbiguityRule(AmbiguityConfig(), {name: load_perspective(name) for name in BUILTIN_PERSPECTIVES})
REWARD = Reward(0.5, 0.8, -0.2, -0.1)

PROMPT = Prompt(
    Scenario("s1", "Émile, baker", "lost his shop", (Turn("seeker", "It’s gone."),)),
    (Message("system", "Be kind."), Message("user", "It’s gone.")),
    "",
    (1, 2, 3),
)


def rollout(
    index: int,
    tokens: int,
    reward: Reward | None,
    *judgments: Judgment,
    finish: FinishReason = FinishReason.STOP,
    response: str | None = "I hear you. 🫂",
) -> Rollout:
    spans = (fake_span(range(tokens), version=3),)
    completion = Completion("s1", index, "# Analysis\n...", spans, finish_reason=finish)
    by_name = {judgment.perspective: judgment for judgment in judgments}
    masked_because = "" if reward else "resonation failed"
    return Rollout(completion, Sections("He grieves.", response), by_name, reward, masked_because)


def ok(perspective: str, score: float, mass: float) -> Judgment:
    return Judgment(perspective, Status.OK, score, mass=mass, distribution=(0.1, 0.9), reason="warm")


def example() -> list[RolloutGroup]:
    first = rollout(
        0, 10, Reward(0.5, 0.8, -0.2, -0.1), ok("resonation", 4.0, 0.9), ok("bystander", 60.0, 0.8)
    )
    second = rollout(
        1,
        30,
        Reward(0.1, 0.4, -0.3, 0.0),
        ok("resonation", 2.0, 0.7),
        Judgment("bystander", Status.SKIPPED, reason="no response"),
        finish=FinishReason.LENGTH,
        response=None,
    )
    third = rollout(
        2,
        20,
        None,
        Judgment("resonation", Status.FAILED, reason="timeout"),
        Judgment("bystander", Status.UNPARSEABLE, mass=0.01),
    )
    return [RolloutGroup(PROMPT, (first, second), (1.0, -1.0)), RolloutGroup(PROMPT, (third,), (0.0,))]


def test_every_metric() -> None:
    assert rollout_metrics(example()) == pytest.approx(
        {
            "reward/mean": 0.3,
            "reward/std": 0.2,
            "reward/empathy": 0.6,
            "reward/bystander": -0.25,
            "reward/length": -0.05,
            "judge/resonation/mean": 3.0,
            "judge/resonation/std": 1.0,
            "judge/resonation/mass": 0.8,
            "judge/resonation/tokens": 0,
            "judge/resonation/latency_s": 0.0,
            "judge/resonation/failed": 1,
            "judge/resonation/unparseable": 0,
            "judge/resonation/skipped": 0,
            "judge/bystander/mean": 60.0,
            "judge/bystander/std": 0.0,
            "judge/bystander/mass": 0.8,
            "judge/bystander/tokens": 0,
            "judge/bystander/latency_s": 0.0,
            "judge/bystander/failed": 1,
            "judge/bystander/unparseable": 1,
            "judge/bystander/skipped": 1,
            "format/valid": 2 / 3,
            "guard/removed": 0.0,
            "rollout/completions": 3,
            "rollout/tokens": 60,
            "rollout/length_mean": 20.0,
            "rollout/truncated": 1 / 3,
            "rollout/ok": 2,
            "rollout/masked": 1,
            "group/zero_variance": 1,
        }
    )


def test_a_mean_over_nothing_is_absent() -> None:
    failed = rollout(0, 4, None, Judgment("resonation", Status.FAILED))
    metrics = rollout_metrics([RolloutGroup(PROMPT, (failed,), (0.0,))])
    assert not [name for name in metrics if name.startswith("reward/")]
    assert "judge/resonation/mean" not in metrics
    assert metrics["judge/resonation/failed"] == 1
    assert rollout_metrics([]) == {
        "rollout/completions": 0,
        "rollout/tokens": 0,
        "rollout/ok": 0,
        "rollout/masked": 0,
        "group/zero_variance": 0,
    }


def test_sample_rows() -> None:
    rows = [plain_row(row) for row in sample_rows(7, example(), RULE)]
    assert [(row["index"], row["advantage"], row["masked"]) for row in rows] == [
        (0, 1.0, False),
        (1, -1.0, False),
        (2, 0.0, True),
    ]
    first, second, third = (json.loads(json.dumps(row, ensure_ascii=False)) for row in rows)
    assert first["prompt"][1] == {"role": "user", "content": "It’s gone."}
    assert first["reward"] == {"value": 0.5, "empathy": 0.8, "bystander": -0.2, "length": -0.1, "parts": {}}
    assert first["judgments"]["resonation"] == {
        "perspective": "resonation",
        "score": 4.0,
        "sampled": None,
        "mass": 0.9,
        "distribution": [0.1, 0.9],
        "entropy": None,
        "spread": None,
        "criteria": {},
        "status": "ok",
        "reason": "warm",
        "tries": 1,
        "latency_s": 0.0,
        "tokens": {"prompt": 0, "cached": 0, "completion": 0},
        "judge": "",
        "rubric_digest": "",
    }
    assert (first["step"], first["version"], first["tokens"], first["finish_reason"]) == (7, 3, 10, "stop")
    assert (second["response"], second["finish_reason"]) == (None, "length")
    assert (third["reward"], third["masked_because"]) == (None, "resonation failed")
    assert first["ambiguous"] == []
    assert [parse_row(row) for row in (first, second, third)] == sample_rows(7, example(), RULE)


def test_a_steps_cost_of_judging() -> None:
    used = [TokenUsage(100, 0, 1), TokenUsage(100, 90, 1), TokenUsage(0, 0, 0)]
    judgments = [replace(ok("resonation", 3.0, 0.9), tokens=tokens, latency_s=2.0) for tokens in used]
    rollouts = tuple(rollout(i, 4, REWARD, judgment) for i, judgment in enumerate(judgments))
    metrics = rollout_metrics([RolloutGroup(PROMPT, rollouts, (0.0,) * 3)])
    assert metrics["judge/resonation/tokens"] == 202
    assert metrics["judge/resonation/cache_hit"] == 0.45
    assert metrics["judge/resonation/latency_s"] == 2.0
