"""Rewards and scores by the scenarios' tags, and which rollouts people should read."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from perm_ray.config.judges import AmbiguityConfig
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, load_perspective
from perm_ray.tracking.ambiguous import AmbiguityRule, relative_entropy
from perm_ray.tracking.samples import ambiguous_rows
from perm_ray.tracking.slices import slice_metrics
from perm_ray.types import Judgment, Reward, Rollout, RolloutGroup, Sections, Status
from tests.support.fakes import fake_completion, fake_prompt

RULE = AmbiguityRule(AmbiguityConfig(), {name: load_perspective(name) for name in BUILTIN_PERSPECTIVES})


def rollout(scenario_id: str, reward: float | None, **scores: float) -> Rollout:
    judgments = {name: Judgment(name, Status.OK, score) for name, score in scores.items()}
    given = None if reward is None else Reward(reward, 0.0, 0.0, 0.0)
    return Rollout(fake_completion(scenario_id, 0), Sections("a", "r"), judgments, given, "")


def group(scenario_id: str, language: str | None, culture: str | None, *rollouts: Rollout) -> RolloutGroup:
    prompt = fake_prompt(scenario_id)
    scenario = replace(prompt.scenario, language=language, culture=culture)
    return RolloutGroup(replace(prompt, scenario=scenario), rollouts, (0.0,) * len(rollouts))


def unsure(name: str, distribution: tuple[float, ...]) -> Judgment:
    entropy = -sum(p * math.log(p) for p in distribution if p)
    return Judgment(name, Status.OK, 3.0, distribution=distribution, entropy=entropy)


def test_means_of_each_language_and_culture() -> None:
    groups = [
        group("a", "de", None, rollout("a", 0.5, expression=4.0), rollout("a", None, expression=2.0)),
        group("b", "de", "Sorbian/Wend", rollout("b", 0.1, expression=3.0)),
        group("c", None, None, rollout("c", 0.9, expression=5.0)),
    ]
    assert slice_metrics(groups) == pytest.approx(
        {
            "slice/language/de/count": 3.0,
            "slice/language/de/reward": 0.3,
            "slice/language/de/expression": 3.0,
            "slice/culture/Sorbian_Wend/count": 1.0,
            "slice/culture/Sorbian_Wend/reward": 0.1,
            "slice/culture/Sorbian_Wend/expression": 3.0,
        }
    )


def test_perspectives_that_disagree_are_ambiguous() -> None:
    reasons = RULE.reasons(rollout("a", 0.1, resonation=4.5, expression=2.0, reception=3.0, bystander=0.0))
    assert reasons == ("the perspectives disagree: expression 2.0, resonation 4.5",)
    assert RULE.reasons(rollout("a", 0.1, resonation=4.0, expression=2.0, bystander=0.0)) == ()


def test_a_judge_without_an_opinion_is_ambiguous() -> None:
    flat, sharp = unsure("expression", (0.2,) * 5), unsure("reception", (0.0, 0.0, 0.9, 0.1, 0.0))
    assert relative_entropy(flat) == pytest.approx(1.0)
    found = replace(rollout("a", 0.1), judgments={"expression": flat, "reception": sharp})
    (reason,) = RULE.reasons(found)
    assert reason.startswith("expression is unsure")


def test_judgments_without_a_score_are_neither() -> None:
    failed = Judgment("expression", Status.FAILED, reason="timeout")
    assert RULE.reasons(replace(rollout("a", None), judgments={"expression": failed})) == ()


def test_the_list_has_the_most_ambiguous_first_and_an_end() -> None:
    rollouts = [rollout("a", 0.0, resonation=high, expression=1.0) for high in (2.0, 5.0, 3.5, 4.0)]
    rule = replace(RULE, config=AmbiguityConfig(list_size=2))
    rows = ambiguous_rows(3, [group("a", "de", None, *rollouts)], rule)
    assert [row.judgments["resonation"].score for row in rows] == [5.0, 4.0]
    assert rows[0].ambiguous == ("the perspectives disagree: expression 1.0, resonation 5.0",)
    assert rows[0].language == "de"
