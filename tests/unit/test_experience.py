"""Prompts to judged groups: the real collector and panel over scripted completions and judgments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from perm_ray.config.training import RewardConfig
from perm_ray.errors import NotFiniteError
from perm_ray.experience import Collected, Collector
from perm_ray.judges.judge import JudgeTask
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, load_perspective
from perm_ray.loop import train_sequences
from perm_ray.rewards.advantages import check_finite
from perm_ray.tracking.rollout_metrics import rollout_metrics
from perm_ray.types import Completion, FinishReason, Judgment, Prompt, RolloutGroup, Status
from tests.support.fakes import (
    FakeJudgePanel,
    FakeRolloutPool,
    SampleRequest,
    fake_completion,
    fake_prompt,
)

ALL = {name: load_perspective(name) for name in BUILTIN_PERSPECTIVES}
Scores = Mapping[tuple[str, int], tuple[float | None, float | None, float | None, float | None]]
# The four scores of each completion, in the registry's order; None is an answer without a score.
GOOD, POOR, LOPSIDED = (4.0, 4.0, 4.0, 80.0), (2.0, 2.0, 2.0, 60.0), (5.0, 5.0, 1.0, 100.0)
UNREADABLE = (4.0, None, 5.0, 80.0)


def collector(
    completions: Sequence[Completion],
    scores: Scores,
    rewards: RewardConfig | None = None,
    deterministic: bool = True,
) -> tuple[Collector, FakeRolloutPool, FakeJudgePanel]:
    def judge(perspective: str, task: JudgeTask) -> Judgment:
        score = scores[task.key][list(ALL).index(perspective)]
        if score is None:
            return Judgment(perspective, Status.UNPARSEABLE, reason="no number in it")
        return Judgment(perspective, Status.OK, score)

    rollouts, panel = FakeRolloutPool(completions), FakeJudgePanel(ALL, judge, deterministic)
    return Collector(rollouts, panel, ALL, rewards or RewardConfig()), rollouts, panel


def collect(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    scores: Scores,
    rewards: RewardConfig | None = None,
) -> Collected:
    collecting, _, _ = collector(completions, scores, rewards)
    return collecting.collect(prompts, num_completions=len(completions) // len(prompts), step=1)


def values(collected: Collected) -> list[list[float | None]]:
    return [[r.reward.value if r.reward else None for r in group.rollouts] for group in collected.groups]


# ---- rewards and advantages -----------------------------------------------------------------


def test_known_scores_give_the_rewards_and_advantages_worked_out_by_hand() -> None:
    completions = [fake_completion("a", i) for i in range(2)]
    collected = collect([fake_prompt("a")], completions, {("a", 0): GOOD, ("a", 1): POOR})
    # 4/5 + 0.5 * (0.8 - 1) = 0.7 and 2/5 + 0.5 * (0.6 - 1) = 0.2
    assert values(collected) == [[pytest.approx(0.7), pytest.approx(0.2)]]
    # mean 0.45, unbiased deviation sqrt(2 * 0.25^2 / 1) = 0.353553; 0.25 / (0.353553 + 0.0001) = 0.706907
    assert collected.groups[0].advantages == (pytest.approx(0.706907, abs=1e-6), pytest.approx(-0.706907))


def test_the_harmonic_mean_refuses_to_sell_one_perspective_for_another() -> None:
    completions = [fake_completion("a", i) for i in range(2)]
    scores = {("a", 0): LOPSIDED, ("a", 1): GOOD}
    collected = collect([fake_prompt("a")], completions, scores)
    assert values(collected) == [[pytest.approx(3 / 7), pytest.approx(0.7)]]
    collected = collect([fake_prompt("a")], completions, scores, RewardConfig(combine="mean"))
    assert values(collected) == [[pytest.approx(11 / 15), pytest.approx(0.7)]]


def test_a_long_completion_pays_for_each_token_beyond_the_free_ones() -> None:
    completions = [fake_completion("a", i, token_ids=range(768 + 100 * i)) for i in range(2)]
    collected = collect([fake_prompt("a")], completions, {("a", 0): GOOD, ("a", 1): GOOD})
    assert values(collected) == [[pytest.approx(0.7), pytest.approx(0.6)]]


def test_groups_are_compared_within_themselves_only() -> None:
    completions = [fake_completion(name, i) for name in "ab" for i in range(2)]
    scores = {("a", 0): GOOD, ("a", 1): GOOD, ("b", 0): POOR, ("b", 1): POOR}
    collected = collect([fake_prompt("a"), fake_prompt("b")], completions, scores)
    assert [group.advantages for group in collected.groups] == [(0.0, 0.0), (0.0, 0.0)]
    assert all(group.zero_variance for group in collected.groups)


# ---- failures and missing sections ----------------------------------------------------------


def test_an_unparseable_judgment_masks_its_rollout_and_leaves_the_baseline_as_it_is() -> None:
    completions = [fake_completion("a", i) for i in range(3)]
    scores = {("a", 0): GOOD, ("a", 1): UNREADABLE, ("a", 2): POOR}
    (group,) = collect([fake_prompt("a")], completions, scores).groups
    first, masked, last = group.rollouts
    assert masked.masked
    assert masked.reward is None
    assert masked.masked_because == "expression is unparseable: no number in it"
    assert masked.judgments["reception"].score == 5.0  # what the others said is still there to be read
    assert [first.masked, last.masked] == [False, False]
    assert group.advantages == (pytest.approx(0.706907, abs=1e-6), 0.0, pytest.approx(-0.706907, abs=1e-6))


def test_a_group_with_one_rollout_left_teaches_nothing() -> None:
    completions = [fake_completion("a", i) for i in range(2)]
    (group,) = collect([fake_prompt("a")], completions, {("a", 0): GOOD, ("a", 1): UNREADABLE}).groups
    assert group.advantages == (0.0, 0.0)


def test_every_completion_is_either_rewarded_or_masked() -> None:
    completions = [fake_completion(name, i) for name in "abc" for i in range(4)]
    kinds = (GOOD, UNREADABLE, POOR, LOPSIDED, UNREADABLE)
    scores = {(c.scenario_id, c.index): kinds[n % 5] for n, c in enumerate(completions)}
    collected = collect([fake_prompt(name) for name in "abc"], completions, scores)
    metrics = rollout_metrics(collected.groups)
    rewarded = sum(value is not None for group in values(collected) for value in group)
    assert metrics["rollout/completions"] == 12
    assert metrics["rollout/masked"] == 5
    assert rewarded + metrics["rollout/masked"] == metrics["rollout/completions"]
    assert metrics["judge/expression/unparseable"] == 5


def test_a_completion_without_sections_is_judged_by_nobody_and_gets_the_floor() -> None:
    completions = [fake_completion("a", 0, text="I am here."), fake_completion("a", 1)]
    collecting, _, panel = collector(completions, {("a", 1): GOOD})
    (group,) = collecting.collect([fake_prompt("a")], num_completions=2, step=1).groups
    judgments = group.rollouts[0].judgments
    assert {judgment.status for judgment in judgments.values()} == {Status.SKIPPED}
    assert all(judgment.score is None and judgment.tries == 0 for judgment in judgments.values())
    assert judgments["resonation"].reason == "the completion has no analysis"
    assert {task.key for _, task in panel.asked} == {("a", 1)}
    # the lowest of every scale: 1/5 + 0.5 * (0 - 1)
    assert values(Collected((group,), 0.0, 0.0)) == [[pytest.approx(-0.3), pytest.approx(0.7)]]
    assert group.advantages[0] < 0 < group.advantages[1]


def test_a_missing_section_masks_when_the_configuration_says_so() -> None:
    completions = [fake_completion("a", 0, text="# Response\nI am here."), fake_completion("a", 1)]
    scores = {("a", 0): GOOD, ("a", 1): GOOD}
    (group,) = collect([fake_prompt("a")], completions, scores, RewardConfig(missing_section="mask")).groups
    assert [rollout.masked for rollout in group.rollouts] == [True, False]
    assert group.rollouts[0].masked_because == "resonation is skipped: the completion has no analysis"


def test_only_the_perspective_whose_section_is_missing_is_skipped() -> None:
    completions = [fake_completion("a", i, text="# Response\nI am here.") for i in range(2)]
    (group,) = collect([fake_prompt("a")], completions, {("a", 0): GOOD, ("a", 1): GOOD}).groups
    statuses = {name: judgment.status for name, judgment in group.rollouts[0].judgments.items()}
    assert statuses.pop("resonation") == Status.SKIPPED
    assert set(statuses.values()) == {Status.OK}


# ---- order, and who is asked what -----------------------------------------------------------


@pytest.mark.parametrize("deterministic", [True, False])
def test_completions_that_arrive_out_of_order_are_put_in_order(deterministic: bool) -> None:
    arriving = [fake_completion(name, i) for name, i in [("b", 1), ("a", 2), ("b", 0), ("a", 0), ("b", 2)]]
    arriving.append(fake_completion("a", 1))
    scores = {("a", 0): GOOD, ("a", 1): POOR, ("a", 2): LOPSIDED}
    scores |= {("b", 0): POOR, ("b", 1): LOPSIDED, ("b", 2): GOOD}
    collecting, _, _ = collector(arriving, scores, deterministic=deterministic)
    collected = collecting.collect([fake_prompt("a"), fake_prompt("b")], num_completions=3, step=1)
    assert [group.prompt.scenario.scenario_id for group in collected.groups] == ["a", "b"]
    assert [[r.completion.index for r in group.rollouts] for group in collected.groups] == [[0, 1, 2]] * 2
    good, poor, lopsided = pytest.approx(0.7), pytest.approx(0.2), pytest.approx(3 / 7)
    assert values(collected) == [[good, poor, lopsided], [poor, lopsided, good]]


def test_each_perspective_reads_its_own_section() -> None:
    collecting, _, panel = collector([fake_completion("a", 0)], {("a", 0): GOOD})
    collecting.collect([fake_prompt("a")], num_completions=1, step=1)
    assert {name: task.text for name, task in panel.asked} == {
        "resonation": "She is proud.",
        "expression": "How lovely!",
        "reception": "How lovely!",
        "bystander": "How lovely!",
    }


@pytest.mark.parametrize("deterministic", [True, False])
def test_equal_texts_of_a_group_are_judged_once_and_share_the_judgment(deterministic: bool) -> None:
    completions = [fake_completion("a", i, text=fake_completion("a", i % 2).text) for i in range(4)]
    completions += [fake_completion("b", i, text=completions[i].text) for i in range(4)]
    scores = {("a", 0): GOOD, ("a", 1): POOR, ("b", 0): LOPSIDED, ("b", 1): GOOD}
    collecting, _, panel = collector(completions, scores, deterministic=deterministic)
    collected = collecting.collect([fake_prompt("a"), fake_prompt("b")], num_completions=4, step=1)
    good, poor, lopsided = pytest.approx(0.7), pytest.approx(0.2), pytest.approx(3 / 7)
    assert values(collected) == [[good, poor] * 2, [lopsided, good] * 2]
    assert {task.key for _, task in panel.asked} == set(scores)
    assert collected.load_metrics["judge/expression/shared"] == 4


def test_one_collector_collects_again_with_nothing_left_over() -> None:
    collecting, rollouts, _ = collector([fake_completion("a", 0)], {("a", 0): GOOD})
    heard: list[tuple[str, int, int]] = []
    for step, purpose in ((1, "train"), (0, "heldout")):
        collected = collecting.collect(
            [fake_prompt("a")],
            num_completions=1,
            step=step,
            purpose=purpose,
            report=lambda *progress: heard.append(progress),
        )
        assert values(collected) == [[pytest.approx(0.7)]]
        assert min(collected.generate_s, collected.judge_s) >= 0
    assert rollouts.requests == [SampleRequest(("a",), 1, 1, "train"), SampleRequest(("a",), 1, 0, "heldout")]
    assert heard == [("generate", 0, 1), ("generate", 1, 1), ("judge", 0, 1)] * 2


# ---- what the trainer gets ------------------------------------------------------------------


def test_the_trainer_gets_every_rollout_that_is_not_masked_with_its_sampled_ids_untouched() -> None:
    # Ids that no tokenizer would give back for this text: what was sampled is what is trained on.
    completions = [fake_completion("a", i, token_ids=(50 + i, 0, 511)) for i in range(4)]
    completions[3] = fake_completion("a", 3, text="", token_ids=())
    scores = {("a", 0): GOOD, ("a", 1): UNREADABLE, ("a", 2): POOR}
    collected = collect([fake_prompt("a", (9, 8, 7))], completions, scores)
    advantages = collected.groups[0].advantages
    sequences = train_sequences(collected.groups)
    assert [sequence.token_ids[3:] for sequence in sequences] == [(50, 0, 511), (52, 0, 511)]
    assert {sequence.prompt_ids for sequence in sequences} == {(9, 8, 7)}
    assert {sequence.logprobs for sequence in sequences} == {(-0.5, -0.5, -0.5)}
    assert [sequence.advantage for sequence in sequences] == [advantages[0], advantages[2]]


def test_a_step_in_which_all_is_masked_gives_the_trainer_nothing() -> None:
    completions = [fake_completion("a", i) for i in range(2)]
    scores = {("a", 0): UNREADABLE, ("a", 1): UNREADABLE}
    assert train_sequences(collect([fake_prompt("a")], completions, scores).groups) == []


# ---- what cannot be trained on -----------------------------------------------------------------------------


def test_a_reward_that_is_not_finite_is_refused_with_the_name_of_its_rollout() -> None:
    completions = [fake_completion("a", i, version=6) for i in range(2)]
    collecting, _, _ = collector(completions, {("a", 0): GOOD, ("a", 1): POOR})
    own = replace(collecting, reward=lambda _: math.inf)
    groups = own.collect([fake_prompt("a")], num_completions=2, step=1).groups
    with pytest.raises(NotFiniteError, match=r"reward of completion 0 of scenario a \(policy version 6\)"):
        check_finite(groups)
    # What would have been trained on is there, to be looked at.
    assert [math.isnan(sequence.advantage) for sequence in train_sequences(groups)] == [True, True]


def test_an_advantage_that_is_not_finite_is_refused_with_the_name_of_its_rollout() -> None:
    completions = [fake_completion("a", i) for i in range(2)]
    (group,) = collect([fake_prompt("a")], completions, {("a", 0): GOOD, ("a", 1): POOR}).groups
    with pytest.raises(NotFiniteError, match=r"advantage of completion 1 of scenario a .* found nan"):
        check_finite([replace(group, advantages=(0.5, float("nan")))])


# ---- truncated completions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "second", "why"),
    [
        ("keep", pytest.approx(0.2), ""),
        ("penalise", pytest.approx(0.2 - 0.25), ""),
        ("mask", None, "it was cut off after 3 tokens"),
    ],
)
def test_a_truncated_completion_is_kept_penalised_or_masked(how: Any, second: float | None, why: str) -> None:
    cut = replace(fake_completion("a", 1), finish_reason=FinishReason.LENGTH)
    rewards = RewardConfig(truncated=how, truncated_penalty=0.25)
    collected = collect(
        [fake_prompt("a")], [fake_completion("a", 0), cut], {("a", 0): GOOD, ("a", 1): POOR}, rewards
    )
    assert values(collected) == [[pytest.approx(0.7), second]]
    assert collected.groups[0].rollouts[1].masked_because == why
    assert (collected.groups[0].advantages == (0.0, 0.0)) == (how == "mask")


# ---- parts of a reward -------------------------------------------------------------------------------------


def test_every_part_is_normalised_on_its_own_when_configured() -> None:
    completions = [fake_completion("a", i) for i in range(3)]
    scores = {("a", 0): (5.0, 3.0, 3.0, 50.0), ("a", 1): (1.0, 3.0, 3.0, 52.0), ("a", 2): UNREADABLE}
    rewards = RewardConfig(composition="normalize_then_sum", weights={"bystander": 3.0})
    (group,) = collect([fake_prompt("a")], completions, scores, rewards).groups
    first = group.rollouts[0].reward
    assert first is not None
    assert first.parts == pytest.approx(
        {"resonation": 1.0, "expression": 0.6, "reception": 0.6, "bystander": 0.5, "length": 0.0}
    )
    # The bystander's two points out of a hundred count three times what four points of resonation do.
    assert group.advantages == (pytest.approx(-0.7071, abs=1e-3), pytest.approx(0.7071, abs=1e-3), 0.0)


# ---- groups with nothing to teach --------------------------------------------------------------------------


class Deck:
    """Prompts that are drawn in order, and what was asked for."""

    def __init__(self, names: str) -> None:
        self._names = iter(names)
        self.asked: list[int] = []

    def __call__(self, count: int) -> list[Prompt]:
        self.asked.append(count)
        return [fake_prompt(name) for name in itertools.islice(self._names, count)]


def varied(flat: str, deck: Deck, max_resamples: int, rewards: RewardConfig | None = None) -> Collected:
    """Two prompts a step with two completions each; scenarios in `flat` are judged the same twice."""
    names = "abcdefgh"
    scores = {(name, 0): GOOD for name in names}
    scores |= {(name, 1): GOOD if name in flat else POOR for name in names}
    collecting, _, _ = collector([], scores, rewards)
    collecting = replace(collecting, rollouts=AnsweringPool())
    return collecting.collect_varied(
        deck, num_prompts=2, max_resamples=max_resamples, num_completions=2, step=1
    )


class AnsweringPool(FakeRolloutPool):
    """Gives what it is asked for."""

    def __init__(self) -> None:
        super().__init__([])

    def sample(
        self, prompts: Sequence[Prompt], *, num_completions: int, step: int, purpose: str = "train"
    ) -> Iterator[Completion]:
        del step, purpose
        for prompt in prompts:
            yield from (fake_completion(prompt.scenario.scenario_id, i) for i in range(num_completions))


def names(groups: Sequence[RolloutGroup]) -> str:
    return "".join(group.prompt.scenario.scenario_id for group in groups)


def test_without_resampling_a_flat_group_stays() -> None:
    deck = Deck("abc")
    collected = varied("a", deck, max_resamples=0)
    assert (names(collected.groups), names(collected.replaced), collected.resampled) == ("ab", "", 0)
    assert deck.asked == [2]


def test_flat_groups_are_replaced_in_their_places_and_nothing_is_lost() -> None:
    deck = Deck("abcdef")
    collected = varied("abd", deck, max_resamples=3)
    # a and b are flat: c takes a's place and d is flat too; e takes b's.
    assert (names(collected.groups), names(collected.replaced)) == ("ce", "dab")
    assert (deck.asked, collected.resampled) == ([2, 2, 1], 3)
    assert not any(group.zero_variance for group in collected.groups)
    metrics = rollout_metrics(collected.sampled)
    assert (metrics["rollout/completions"], metrics["group/zero_variance"]) == (10, 3)


def test_resampling_is_bounded() -> None:
    deck = Deck("abcdefgh")
    collected = varied("abcdefgh", deck, max_resamples=2)
    assert (names(collected.groups), names(collected.replaced)) == ("ab", "cdef")
    assert deck.asked == [2, 2, 2]
    assert varied("a", Deck("ab"), max_resamples=5).resampled == 0  # no prompts are left


def test_advantages_are_those_of_the_step_that_is_trained() -> None:
    rewards = RewardConfig(advantage_scaling="batch")
    collected = varied("a", Deck("abc"), max_resamples=1, rewards=rewards)
    whole = varied("", Deck("cb"), max_resamples=0, rewards=rewards)
    assert names(collected.groups) == "cb"
    assert [g.advantages for g in collected.groups] == [g.advantages for g in whole.groups]
