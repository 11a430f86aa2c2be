"""Prompts in, judged rollout groups out: the half of a step that makes experience.

Samples through the rollout pool, hands every completion to the judge panel the moment it finishes, and
turns judgments into rewards and rewards into advantages. The training loop and the held-out evaluation
both collect here, so they can never measure different things.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from perm_ray.config.schema import RewardConfig
from perm_ray.data.prompts import split_sections
from perm_ray.errors import RunError
from perm_ray.judges.judge import ItemKey
from perm_ray.judges.load import load_metrics
from perm_ray.judges.panel import JudgePanel
from perm_ray.perspectives.perspective import Perspective
from perm_ray.rewards.advantages import group_advantages
from perm_ray.rewards.combine import reward_of
from perm_ray.rewards.score_map import ScoreMap
from perm_ray.rollout.pool import RolloutPool
from perm_ray.types import Completion, Judgment, Prompt, Rollout, RolloutGroup, Sections

Report = Callable[[str, int, int], None]


def silent(phase: str, done: int, total: int) -> None:
    """Reports to nobody."""
    del phase, done, total


@dataclass(frozen=True, slots=True)
class Collected:
    """The groups of one collection, in the order of their prompts, and what it cost.

    `generate_s` is until the last completion arrived, `judge_s` what judging took beyond that;
    `load_metrics` say how busy the judge pools were (see `judges/load.py`).
    """

    groups: tuple[RolloutGroup, ...]
    generate_s: float
    judge_s: float
    load_metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Collector:
    """What collecting needs: where completions and judgments come from, and how they are rewarded."""

    rollouts: RolloutPool
    panel: JudgePanel
    perspectives: Mapping[str, Perspective]
    rewards: RewardConfig
    score_maps: Mapping[str, ScoreMap] = field(default_factory=dict)

    def collect(
        self,
        prompts: Sequence[Prompt],
        *,
        num_completions: int,
        step: int,
        purpose: str = "train",
        report: Report = silent,
    ) -> Collected:
        """Sample and judge `num_completions` of each prompt; `report` hears the phase, done and total."""
        start = time.monotonic()
        scenarios = {prompt.scenario.scenario_id: prompt.scenario for prompt in prompts}
        wanted = len(prompts) * num_completions
        answers: dict[ItemKey, tuple[Completion, Sections]] = {}
        stream = self.rollouts.sample(prompts, num_completions=num_completions, step=step, purpose=purpose)
        report("generate", 0, wanted)
        for completion in stream:
            sections = split_sections(completion.text)
            answers[completion.scenario_id, completion.index] = completion, sections
            key = completion.scenario_id, completion.index
            self.panel.submit(key, scenarios[completion.scenario_id], sections)
            report("generate", len(answers), wanted)
        if len(answers) != wanted:
            raise RunError(f"The rollout engines gave {len(answers)} of {wanted} completions in step {step}.")
        generated, sampled_at = time.monotonic(), time.time()
        report("judge", 0, wanted)
        judged = self.panel.collect()
        groups = tuple(
            self._group(prompt, [answers[_key(prompt, i)] for i in range(num_completions)], judged.judgments)
            for prompt in prompts
        )
        judge_s = time.monotonic() - generated
        return Collected(groups, generated - start, judge_s, load_metrics(judged.loads, sampled_at))

    def _group(
        self,
        prompt: Prompt,
        answers: Sequence[tuple[Completion, Sections]],
        judgments: Mapping[ItemKey, Mapping[str, Judgment]],
    ) -> RolloutGroup:
        rollouts = tuple(
            self._rollout(completion, sections, judgments[_key(prompt, completion.index)])
            for completion, sections in answers
        )
        values = [rollout.reward.value if rollout.reward else None for rollout in rollouts]
        return RolloutGroup(prompt, rollouts, group_advantages(values, self.rewards.advantage_scaling))

    def _rollout(
        self, completion: Completion, sections: Sections, judgments: Mapping[str, Judgment]
    ) -> Rollout:
        reward, masked_because = reward_of(
            judgments, self.perspectives, len(completion.token_ids), self.rewards, self.score_maps
        )
        return Rollout(completion, sections, judgments, reward, masked_because)


def _key(prompt: Prompt, index: int) -> ItemKey:
    return prompt.scenario.scenario_id, index
