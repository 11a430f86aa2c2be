"""Rate limits, with a clock that does not wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from perm_ray.models.rate_limits import TokenBucket


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
