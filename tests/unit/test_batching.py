"""Dealing a step's sequences to ranks and micro-batches, and merging what the ranks report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perm_ray.errors import RunError
from perm_ray.trainer.batching import TrainSequence, plan_micro_batches
from perm_ray.trainer.metrics import StepSums, step_metrics


def test_the_longest_sequences_are_packed_first_and_spread_over_ranks() -> None:
    # 50 -> rank 0, 40 -> rank 1, 30 -> rank 1, 20 -> rank 0, 10 -> rank 0 or 1 (70 each: the first)
    plan = plan_micro_batches([10, 50, 20, 40, 30], budget_tokens=60, num_ranks=2)
    assert plan == [[[1, 0], [2]], [[3], [4]]]


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
        TrainSequence(prompt, completion, logprobs, advantage=1.0)


def test_metrics_weigh_tokens_not_ranks() -> None:
    busy = StepSums(
        tokens=30, loss=6.0, kl=3.0, entropy=60.0, clipped=3, logprob_diff=0.3, logprob_diff_max=0.1
    )
    idle = StepSums(tokens=10, loss=-2.0, kl=1.0, logprob_diff=0.1, logprob_diff_max=0.2)
    both = [StepSums(grad_norm=2.5, lr=1e-6) + busy, StepSums(grad_norm=2.5, lr=1e-6) + idle]
    assert step_metrics(both) == pytest.approx(
        {
            "policy/loss": 0.1,
            "policy/kl": 0.1,
            "policy/entropy": 1.5,
            "policy/clip_fraction": 0.075,
            "policy/logprob_diff_mean": 0.01,
            "policy/logprob_diff_max": 0.2,
            "policy/grad_norm": 2.5,
            "policy/lr": 1e-6,
        }
    )
