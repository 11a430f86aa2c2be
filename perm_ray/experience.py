"""Prompts in, judged rollout groups out: the half of a step that makes experience.

Samples through the rollout pool, hands every completion to the judge panel the moment it finishes, and
turns judgments into rewards and rewards into advantages. The training loop and the held-out evaluation
both collect here, so they can never measure different things.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from perm_ray.config.schema import RolloutConfig
from perm_ray.config.training import RewardConfig
from perm_ray.data.prompts import split_sections
from perm_ray.data.sampler import ScenarioSampler
from perm_ray.errors import RunError
from perm_ray.judges.judge import ItemKey
from perm_ray.judges.panel import JudgePanel, OwnJudge
from perm_ray.judges.perspective import Perspective
from perm_ray.judges.pool_load import load_metrics
from perm_ray.rewards.advantages import make_groups
from perm_ray.rewards.reward import reward_of
from perm_ray.rewards.score_map import ScoreMap
from perm_ray.rollout.endpoint_sampler import Sampler
from perm_ray.tracking.rollout_metrics import rollout_metrics
from perm_ray.tracking.slices import slice_metrics
from perm_ray.trainer.batching import TrainSequence
from perm_ray.types import Completion, Judgment, Prompt, Reward, Rollout, RolloutGroup, Sections

Report = Callable[[str, int, int], None]
# A reward of the user's: from a completion's judgments to a number, or None to mask the rollout.
RewardFunction = Callable[[Mapping[str, Judgment]], float | None]
Draw = Callable[[int], Sequence[Prompt]]  # the next so many prompts, or fewer


def silent(phase: str, done: int, total: int) -> None:
    """Reports to nobody."""
    del phase, done, total


@dataclass(frozen=True, slots=True)
class Collected:
    """The groups of one collection, in the order of their prompts, and what it cost.

    `generate_s` is until the last completion arrived, `judge_s` what judging took beyond that;
    `load_metrics` say how busy the judge pools were (`judges/pool_load.py`). `replaced` are groups that had
    nothing to teach, and `resampled` counts the further prompts that were drawn for it; the load is that
    of the first round.
    """

    groups: tuple[RolloutGroup, ...]
    generate_s: float
    judge_s: float
    load_metrics: Mapping[str, float] = field(default_factory=dict)
    replaced: tuple[RolloutGroup, ...] = ()
    resampled: int = 0

    @property
    def sampled(self) -> tuple[RolloutGroup, ...]:
        """Return the groups of all that was sampled: metrics of these are not biased by what was replaced."""
        return self.groups + self.replaced

    def reward_metrics(self) -> dict[str, float]:
        """Return rewards, scores, format and lengths of all that was sampled, also by slice."""
        return rollout_metrics(self.sampled) | slice_metrics(self.sampled)

    def metrics(self) -> dict[str, float]:
        """Return `reward_metrics`, the judge pools' load, the sampling speed and the phases' seconds."""
        metrics = self.reward_metrics() | dict(self.load_metrics)
        return metrics | {
            "rollout/tokens_per_s": metrics["rollout/tokens"] / self.generate_s,
            "group/resampled": float(self.resampled),
            "time/generate_s": self.generate_s,
            "time/judge_s": self.judge_s,
        }


@dataclass(frozen=True, slots=True)
class Collector:
    """Sample, judge and reward completions of prompts."""

    rollouts: Sampler
    panel: JudgePanel | OwnJudge
    perspectives: Mapping[str, Perspective]
    rewards: RewardConfig
    score_maps: Mapping[str, ScoreMap] = field(default_factory=dict)
    reward: RewardFunction | None = None

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
        judging = self.panel.batch()
        report("generate", 0, wanted)
        for completion in stream:
            sections = split_sections(completion.text)
            key = _key(completion)
            answers[key] = completion, sections
            judging.submit(key, scenarios[completion.scenario_id], sections)
            report("generate", len(answers), wanted)
        if len(answers) != wanted:
            raise RunError(f"The rollout engines gave {len(answers)} of {wanted} completions in step {step}.")
        generated, sampled_at = time.monotonic(), time.time()
        report("judge", 0, wanted)
        judged = judging.collect()
        rollouts = [
            [self._rollout(*answers[key], judged.judgments[key]) for key in _keys(prompt, num_completions)]
            for prompt in prompts
        ]
        groups = make_groups(prompts, rollouts, self.rewards)
        judge_s = time.monotonic() - generated
        return Collected(groups, generated - start, judge_s, load_metrics(judged.loads, sampled_at))

    def collect_varied(
        self,
        draw: Draw,
        *,
        num_prompts: int,
        max_resamples: int,
        num_completions: int,
        step: int,
        report: Report = silent,
    ) -> Collected:
        """`collect` for training, with DAPO's dynamic sampling (arXiv 2503.14476, section 3.2), bounded.

        Groups whose advantages are all zero are replaced by those of further prompts, in at most
        `max_resamples` rounds; what is still flat then stays.
        """

        def collect(prompts: Sequence[Prompt]) -> Collected:
            return self.collect(prompts, num_completions=num_completions, step=step, report=report)

        found = collect(draw(num_prompts))
        groups, replaced, resampled = list(found.groups), [], 0
        generate_s, judge_s = found.generate_s, found.judge_s
        for _ in range(max_resamples):
            flat = [place for place, group in enumerate(groups) if group.zero_variance]
            prompts = draw(len(flat)) if flat else ()
            if not prompts:
                break
            further = collect(prompts)
            resampled += len(prompts)
            generate_s, judge_s = generate_s + further.generate_s, judge_s + further.judge_s
            varied = [group for group in further.groups if not group.zero_variance]
            replaced += [group for group in further.groups if group.zero_variance]
            for place, group in zip(flat, varied, strict=False):  # what finds no substitute stays
                replaced.append(groups[place])
                groups[place] = group
        if resampled:  # advantages may depend on the whole step, which is another one now
            groups = make_groups([g.prompt for g in groups], [g.rollouts for g in groups], self.rewards)
        return replace(
            found,
            groups=tuple(groups),
            generate_s=generate_s,
            judge_s=judge_s,
            replaced=tuple(replaced),
            resampled=resampled,
        )

    def graded(self, collected: Collected, panel: JudgePanel) -> Collected:
        """Return the same completions, judged and rewarded by another panel."""
        batch = panel.batch()
        for group in collected.groups:
            for rollout in group.rollouts:
                batch.submit(_key(rollout.completion), group.prompt.scenario, rollout.sections)
        judgments = batch.collect().judgments
        rollouts = [
            [self._rollout(r.completion, r.sections, judgments[_key(r.completion)]) for r in group.rollouts]
            for group in collected.groups
        ]
        groups = make_groups([group.prompt for group in collected.groups], rollouts, self.rewards)
        return replace(collected, groups=groups, load_metrics={})

    def _rollout(
        self, completion: Completion, sections: Sections, judgments: Mapping[str, Judgment]
    ) -> Rollout:
        if self.reward is not None:
            value = self.reward(judgments)
            own = None if value is None else Reward(value, value, 0.0, 0.0, {"reward": value})
            why = "" if own is not None else "the reward function gave None"
            return Rollout(completion, sections, judgments, own, why)
        tokens, truncated = len(completion.token_ids), completion.truncated
        reward, masked_because = reward_of(
            judgments, self.perspectives, tokens, self.rewards, self.score_maps, truncated
        )
        return Rollout(completion, sections, judgments, reward, masked_because)


class Experience:
    """Judged groups for each step, sampled and judged when they are asked for: the synchronous case.

    The loop asks for a step with `take` and says with `published` that the engines hold new weights.
    """

    def __init__(
        self,
        collector: Collector,
        sampler: ScenarioSampler,
        prompts: Sequence[Prompt],
        config: RolloutConfig,
        report: Report = silent,
    ) -> None:
        self._collector = collector
        self._sampler = sampler
        self._prompts = prompts
        self._config = config
        self._report = report

    def take(self, step: int) -> Collected:
        """Return the groups that `step` trains on, each with its advantages."""
        drawn: set[int] = set()

        def draw(count: int) -> list[Prompt]:
            """Draw prompts; one that the step has already (an epoch may end within it) is left out."""
            fresh = [index for index in self._sampler.next_batch(count) if index not in drawn]
            drawn.update(fresh)
            return [self._prompts[index] for index in fresh]

        return self._collector.collect_varied(
            draw,
            num_prompts=self._config.prompts_per_step,
            max_resamples=self._config.max_resamples,
            num_completions=self._config.completions_per_prompt,
            step=step,
            report=self._report,
        )

    def published(self, version: int) -> None:
        """Note that the engines hold `version`. Nothing is sampled between two calls of `take`."""
        del version

    def state(self) -> Mapping[str, object]:
        """Return the place in the data, for a checkpoint."""
        return self._sampler.state()

    def restore(self, state: Mapping[str, object]) -> None:
        """Go on from the place of a checkpoint."""
        self._sampler.restore(state)


def train_sequences(groups: Sequence[RolloutGroup]) -> list[TrainSequence]:
    """Return what the trainer learns from: every rollout that is not masked, with its sampled token ids."""
    sequences = []
    for group in groups:
        for rollout, advantage in zip(group.rollouts, group.advantages, strict=True):
            completion = rollout.completion
            if not rollout.masked and completion.token_ids:
                sequences.append(TrainSequence.of(group.prompt.token_ids, completion.spans, advantage))
    return sequences


def _key(completion: Completion) -> ItemKey:
    return completion.scenario_id, completion.index


def _keys(prompt: Prompt, num_completions: int) -> list[ItemKey]:
    return [(prompt.scenario.scenario_id, index) for index in range(num_completions)]
