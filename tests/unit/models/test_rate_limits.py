"""Rates and concurrency, with a clock that does not wait."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perm_ray.models.rate_limits import AdaptiveConcurrency, TokenBucket


class FastClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


@given(st.integers(1, 600), st.lists(st.floats(0.0, 40.0), min_size=1, max_size=200))
def test_no_minute_sees_more_than_the_rate_and_its_burst(per_minute: int, gaps: list[float]) -> None:
    clock = FastClock()
    bucket = TokenBucket(per_minute, clock)
    times: list[float] = []
    for gap in gaps:
        clock.time += gap
        clock.time += bucket.take(1)
        times.append(clock.time)
    most = per_minute + max(1.0, per_minute / 10)
    for start in times:
        assert sum(start <= time < start + 60 for time in times) <= most + 1e-6


def test_a_bucket_keeps_the_order_of_its_callers_and_takes_back_what_was_not_used() -> None:
    bucket = TokenBucket(60, FastClock())
    assert [bucket.take(3) for _ in range(4)] == [0.0, 0.0, 3.0, 6.0]
    bucket.give_back(6)
    assert bucket.take(1) == 1.0
    assert TokenBucket(None, FastClock()).take(10**9) == 0.0


async def _waiting(concurrency: AdaptiveConcurrency, done: asyncio.Event, held: list[int]) -> None:
    async with concurrency.place(5.0):
        held.append(1)
        try:
            await done.wait()
        finally:
            held.pop()


def test_never_more_under_way_than_the_limit_and_a_higher_limit_lets_the_next_in() -> None:
    async def run() -> None:
        concurrency, done = AdaptiveConcurrency(2), asyncio.Event()
        held: list[int] = []
        concurrency.trouble(0)
        tasks = [asyncio.create_task(_waiting(concurrency, done, held)) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert (concurrency.limit, len(held)) == (1, 1)
        concurrency.went_well()
        await asyncio.sleep(0.01)
        assert (concurrency.limit, len(held)) == (2, 2)
        done.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())


def test_what_fails_together_is_one_trouble() -> None:
    async def run() -> list[int]:
        concurrency = AdaptiveConcurrency(16)
        limits = []
        for _ in range(2):
            async with concurrency.place(1.0) as first, concurrency.place(1.0) as second:
                concurrency.trouble(first)
                concurrency.trouble(second)
            limits.append(concurrency.limit)
        return limits

    assert asyncio.run(run()) == [8, 4]


def test_a_place_that_is_given_up_is_the_next_ones() -> None:
    async def run() -> None:
        concurrency, done = AdaptiveConcurrency(1), asyncio.Event()
        held: list[int] = []
        first = asyncio.create_task(_waiting(concurrency, done, held))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with concurrency.place(0.01):
                pass
        second, third = (asyncio.create_task(_waiting(concurrency, done, held)) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()  # its place goes to the second, which is cancelled in the same moment
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0.01)
        assert len(held) == 1
        assert not third.done()
        done.set()
        await third
        async with concurrency.place(0.01):
            pass

    asyncio.run(run())


def test_one_that_gives_up_while_the_next_place_comes_free_frees_no_second_one() -> None:
    async def run() -> None:
        concurrency, done = AdaptiveConcurrency(2), asyncio.Event()
        concurrency.trouble(0)
        held: list[int] = []
        first, second = (asyncio.create_task(_waiting(concurrency, done, held)) for _ in range(2))
        await asyncio.sleep(0.01)
        second.cancel()
        concurrency.went_well()  # before the second knows that it is cancelled
        rest = [asyncio.create_task(_waiting(concurrency, done, held)) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert len(held) == concurrency.limit == 2
        done.set()
        await asyncio.gather(first, *rest)

    asyncio.run(run())


@given(st.lists(st.sampled_from(["enter", "leave", "cancel"]), max_size=60), st.integers(1, 4))
def test_places_are_neither_lost_nor_doubled_however_waiting_ends(moves: list[str], highest: int) -> None:
    async def run() -> None:
        concurrency = AdaptiveConcurrency(highest)
        most = under_way = 0

        async def hold(done: asyncio.Event) -> None:
            nonlocal most, under_way
            async with concurrency.place(60.0):
                under_way += 1
                most = max(most, under_way)
                try:
                    await done.wait()
                finally:
                    under_way -= 1

        tasks: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        for index, move in enumerate(moves):
            if move == "enter":
                done = asyncio.Event()
                tasks.append((asyncio.create_task(hold(done)), done))
            elif tasks:
                task, done = tasks[index % len(tasks)]
                done.set() if move == "leave" else task.cancel()
            if index % 3:
                await asyncio.sleep(0)
        for _, done in tasks:
            done.set()
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert most <= highest
        assert under_way == 0
        for _ in range(highest):  # every place is free again
            await concurrency.place(0.05).__aenter__()

    asyncio.run(run())
