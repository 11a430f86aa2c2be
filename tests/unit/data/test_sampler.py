"""The order of scenarios: seeded, fair, and resumable at any batch."""

import json
import random
from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perm_ray.data.sampler import ScenarioSampler
from perm_ray.errors import CheckpointError, ConfigError

SIZES = st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


def batches(sampler: ScenarioSampler, count: int) -> list[tuple[int, ...]]:
    return [sampler.next_batch() for _ in range(count)]


@given(SIZES, st.integers(), st.integers(0, 30), st.integers(0, 30))
def test_a_restored_sampler_goes_on_as_if_nothing_had_happened(
    sizes: tuple[int, int], seed: int, before: int, after: int
) -> None:
    whole = batches(ScenarioSampler(*sizes, seed), before + after)
    first = ScenarioSampler(*sizes, seed)
    head = batches(first, before)
    state = json.loads(json.dumps(first.state()))
    second = ScenarioSampler(*sizes, seed)
    batches(second, 3)  # what it did before must not matter
    second.restore(state)
    assert second.state() == first.state()
    assert head + batches(second, after) == whole


@given(SIZES, st.integers(), st.integers(1, 5))
def test_each_epoch_has_each_scenario_once_and_no_batch_one_twice(
    sizes: tuple[int, int], seed: int, num_epochs: int
) -> None:
    num_scenarios, batch_size = sizes
    drawn = batches(ScenarioSampler(num_scenarios, batch_size, seed), num_scenarios * num_epochs)
    assert all(len(set(batch)) == batch_size for batch in drawn)
    indices = chain.from_iterable(drawn)
    for _ in range(num_epochs):
        assert sorted(islice(indices, num_scenarios)) == list(range(num_scenarios))


@given(SIZES, st.integers(), st.lists(st.integers(0, 12), max_size=20), st.integers(0, 19))
def test_batches_of_any_size_are_fair_and_resumable(
    sizes: tuple[int, int], seed: int, wanted: list[int], at: int
) -> None:
    wanted = [min(size, sizes[1]) for size in wanted]
    sampler = ScenarioSampler(*sizes, seed)
    drawn = []
    for step, size in enumerate(wanted):
        if step == at:
            state = json.loads(json.dumps(sampler.state()))
            sampler = ScenarioSampler(*sizes, seed)
            sampler.restore(state)
        drawn.append(sampler.next_batch(size))
    whole = ScenarioSampler(*sizes, seed)
    assert drawn == [whole.next_batch(size) for size in wanted]
    assert [len(set(batch)) for batch in drawn] == wanted
    indices = list(chain.from_iterable(drawn))
    for epoch in range(len(indices) // sizes[0]):
        assert sorted(indices[epoch * sizes[0] : (epoch + 1) * sizes[0]]) == list(range(sizes[0]))


def test_more_than_a_batch_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and the batch size 3, found 4"):
        ScenarioSampler(5, 3, 42).next_batch(4)


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    random.seed(1)
    first = batches(ScenarioSampler(20, 20, 7), 2)
    random.seed(2)
    assert batches(ScenarioSampler(20, 20, 7), 2) == first
    assert first[0] != first[1]
    assert batches(ScenarioSampler(20, 20, 8), 1)[0] != first[0]


def test_the_order_is_the_same_in_every_release() -> None:
    assert batches(ScenarioSampler(5, 3, 42), 4) == [(4, 1, 0), (3, 2, 0), (3, 1, 2), (4, 2, 0)]


def test_reading_the_state_changes_nothing() -> None:
    sampler = ScenarioSampler(5, 2, 0)
    state = sampler.state()
    assert sampler.state() == state
    assert sampler.next_batch() == ScenarioSampler(5, 2, 0).next_batch()


@pytest.mark.parametrize("batch_size", [0, 6])
def test_a_batch_larger_than_the_data_is_refused(batch_size: int) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.prompts_per_step") as caught:
        ScenarioSampler(5, batch_size, 0)
    assert f"5, found {batch_size}" in str(caught.value)


@pytest.mark.parametrize(
    ("other", "named"),
    [((6, 2, 0), "data.train"), ((5, 3, 0), "rollout.prompts_per_step"), ((5, 2, 1), "run.seed")],
)
def test_a_cursor_of_another_run_is_refused(other: tuple[int, int, int], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        ScenarioSampler(5, 2, 0).restore(ScenarioSampler(*other).state())


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1},
        {"epoch": True},
        {"position": 6},
        {"position": "1"},
        {"carried": None},
        {"carried": [5]},
        {"carried": [[]]},
        {"carried": [1, 2]},
    ],
)
def test_a_damaged_cursor_is_refused(change: dict[str, object]) -> None:
    sampler = ScenarioSampler(5, 2, 0)
    with pytest.raises(CheckpointError, match="makes no sense"):
        sampler.restore({**sampler.state(), **change})
