"""Dealing a step's sequences to ranks and micro-batches, and merging what the ranks report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perm_ray.errors import RunError
from perm_ray.trainer.batching import (
    RankBatch,
    Totals,
    TrainSequence,
    plan_metrics,
    plan_micro_batches,
    plan_step,
    tokens_of,
)
from perm_ray.trainer.step_metrics import StepSums, step_metrics
from tests.support.sequences import one_turn


def test_the_longest_sequences_are_packed_first_and_spread_over_ranks() -> None:
    # 50 -> rank 0, 40 -> rank 1, 30 -> rank 1, 20 -> rank 0, 10 -> rank 0 or 1 (70 each: the first)
    plan = plan_micro_batches([10, 50, 20, 40, 30], budget_tokens=60, num_ranks=2)
    assert plan == [[[1, 0], [2]], [[3], [4]]]


def test_padding_is_only_what_idle_ranks_compute() -> None:
    sequence = one_turn((1,) * 10, (2,) * 8, (0.0,) * 8, 1.0)
    full = plan_metrics(plan_step([sequence] * 4, budget_tokens=40, num_ranks=2, share_prompts=False))
    assert full == {"trainer/padding_share": 0.0, "trainer/shared_share": 0.0}
    # one rank computes 18 tokens, the other the two of a stand-in
    idle = plan_metrics(plan_step([sequence], budget_tokens=40, num_ranks=2))
    assert idle == {"trainer/padding_share": pytest.approx(2 / 20), "trainer/shared_share": 0.0}


def of_prompt(prompt: int, *lengths: int) -> list[TrainSequence]:
    """Completions of so many tokens, of a prompt of ten."""
    return [one_turn((prompt,) * 10, (2,) * n, (0.0,) * n, 1.0) for n in lengths]


def test_completions_of_a_prompt_are_trained_after_one_copy_of_it() -> None:
    one, two = of_prompt(1, 5, 6, 7, 8), of_prompt(2, 9, 9)
    mixed = [one[0], two[0], one[1], one[2], two[1], one[3]]
    ((share,),) = plan_step(mixed, budget_tokens=100, num_ranks=1)
    assert share.micro_batches == ((tuple(one), tuple(two)),)
    # 104 tokens of sequences; 36 and 28 are computed
    assert plan_metrics([[share]])["trainer/shared_share"] == pytest.approx(1 - 64 / 104)


def test_a_prompt_is_repeated_where_its_completions_do_not_fit() -> None:
    one = of_prompt(1, 5, 6, 7, 8)
    ((share,),) = plan_step(one, budget_tokens=24, num_ranks=1)
    assert share.micro_batches == (((one[1], one[3]),), ((one[0], one[2]),))
    # Two ranks, one prompt: each has a part of it.
    ((first,), (second,)) = plan_step(one, budget_tokens=100, num_ranks=2)
    assert (len(first.micro_batches[0]), len(second.micro_batches[0])) == (2, 2)


@given(
    prompts=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=8),
    budget=st.integers(1, 120),
    num_ranks=st.integers(1, 4),
)
def test_sharing_never_computes_more_and_keeps_to_the_budget(
    prompts: list[list[int]], budget: int, num_ranks: int
) -> None:
    step = [sequence for prompt, lengths in enumerate(prompts) for sequence in of_prompt(prompt, *lengths)]
    plan = plan_step(step, budget, num_ranks)
    assert 0 <= plan_metrics(plan)["trainer/shared_share"] < 1
    micro_batches = [micro_batch for (share,) in plan for micro_batch in share.micro_batches]
    for micro_batch in micro_batches:
        sequences = [sequence for unit in micro_batch for sequence in unit]
        assert sum(map(tokens_of, micro_batch)) <= budget or len(sequences) == 1
        assert all(len({sequence.prompt_ids for sequence in unit}) == 1 for unit in micro_batch)
    dealt = [sequence for micro_batch in micro_batches for unit in micro_batch for sequence in unit]
    assert sorted(dealt, key=hash) == sorted(step, key=hash)


def test_a_sequence_over_the_budget_has_a_micro_batch_of_its_own() -> None:
    assert plan_micro_batches([5, 100, 5], budget_tokens=10, num_ranks=1) == [[[1], [0, 2]]]


def test_a_rank_without_work_takes_part_with_an_empty_micro_batch() -> None:
    assert plan_micro_batches([7], budget_tokens=10, num_ranks=3) == [[[0]], [[]], [[]]]
    assert plan_micro_batches([], budget_tokens=10, num_ranks=2) == [[[]], [[]]]


@given(
    lengths=st.lists(st.integers(1, 300), max_size=60),
    budget=st.integers(1, 400),
    num_ranks=st.integers(1, 5),
)
def test_every_plan_keeps_the_promises(lengths: list[int], budget: int, num_ranks: int) -> None:
    plan = plan_micro_batches(lengths, budget, num_ranks)

    dealt = [index for rank in plan for micro_batch in rank for index in micro_batch]
    assert sorted(dealt) == list(range(len(lengths)))  # each sequence once
    assert len(plan) == num_ranks
    assert len({len(rank) for rank in plan}) == 1  # the same count everywhere
    assert len(plan[0]) >= 1
    for micro_batch in (micro_batch for rank in plan for micro_batch in rank):
        assert sum(lengths[i] for i in micro_batch) <= budget or len(micro_batch) == 1
    tokens = [sum(lengths[i] for micro_batch in rank for i in micro_batch) for rank in plan]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)  # balanced
    assert plan == plan_micro_batches(list(lengths), budget, num_ranks)


@pytest.mark.parametrize(
    ("prompt", "completion", "logprobs"), [((), (1,), (0.0,)), ((1,), (), ()), ((1,), (1, 2), (0.0,))]
)
def test_a_sequence_that_cannot_be_trained_on_is_refused(
    prompt: tuple[int, ...], completion: tuple[int, ...], logprobs: tuple[float, ...]
) -> None:
    with pytest.raises(RunError, match="one sampler log-probability for each"):
        one_turn(prompt, completion, logprobs, advantage=1.0)


def sequence(length: int) -> TrainSequence:
    return one_turn((1,), tuple(range(length)), (0.0,) * length, advantage=1.0)


def test_one_minibatch_is_the_step_in_its_own_order() -> None:
    step = [sequence(length) for length in (4, 6, 2)]
    (plan,) = plan_step(step, 12, num_ranks=1, num_minibatches=1, shuffle_seed="any", share_prompts=False)
    assert plan == [RankBatch((((step[1],), (step[0],)), ((step[2],),)), Totals(tokens=12, sequences=3))]


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), ranks=st.integers(1, 3))
def test_every_step_is_split_into_minibatches_of_all_ranks(lengths: list[int], ranks: int) -> None:
    step = [sequence(length) for length in lengths]
    plan = plan_step(step, 40, ranks, num_minibatches=4, shuffle_seed="7/3")
    assert plan == plan_step(step, 40, ranks, num_minibatches=4, shuffle_seed="7/3")
    assert len({len(share) for share in plan}) == 1
    minibatches = list(zip(*plan, strict=True))
    assert len(minibatches) == min(4, len(step))
    for shares in minibatches:
        held = [s for share in shares for micro in share.micro_batches for unit in micro for s in unit]
        assert {share.totals for share in shares} == {Totals(sum(len(s) - 1 for s in held), len(held))}
        assert abs(len(held) - len(step) / len(minibatches)) < 1
        assert len({len(share.micro_batches) for share in shares}) == 1
    units = [unit for share in plan for batch in share for micro in batch.micro_batches for unit in micro]
    trained = [sequence for unit in units for sequence in unit]
    assert sorted(trained, key=len) == sorted(step, key=len)


def test_metrics_weigh_tokens_not_ranks() -> None:
    busy = StepSums(
        tokens=30,
        loss=0.3,
        kl=3.0,
        entropy=60.0,
        clipped=3,
        logprob_diff=0.3,
        logprob_diff_max=0.1,
        mismatch=33.0,
        mismatch_max=1.4,
        mismatch_kl=0.4,
        mismatch_clipped=2.0,
    )
    idle = StepSums(tokens=10, loss=-0.1, kl=1.0, logprob_diff=0.1, logprob_diff_max=0.2, mismatch=9.0)
    both = [StepSums(grad_norm=2.5, lr=1e-6) + busy, StepSums(grad_norm=2.5, lr=1e-6) + idle]
    assert step_metrics(both) == pytest.approx(
        {
            "policy/loss": 0.2,
            "policy/kl": 0.1,
            "policy/entropy": 1.5,
            "policy/clip_fraction": 0.075,
            "policy/logprob_diff_mean": 0.01,
            "policy/logprob_diff_max": 0.2,
            "policy/mismatch_mean": 1.05,
            "policy/mismatch_max": 1.4,
            "policy/mismatch_kl": 0.01,
            "policy/mismatch_clipped": 0.05,
            "policy/grad_norm": 2.5,
            "policy/lr": 1e-6,
        }
    )


def test_a_micro_batch_that_only_takes_part_counts_for_nothing() -> None:
    sums = StepSums(tokens=1, loss=3.0, kl=1.0, mismatch_max=9.0)
    assert sums.weighted(0.0, 0.5) == StepSums()
    assert sums.weighted(1.0, 0.5) == StepSums(tokens=1, loss=1.5, kl=1.0, mismatch_max=9.0)
