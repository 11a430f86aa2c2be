"""Keep to a server's rate limits: a token bucket. The clock is a parameter, so that tests do not wait."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Seconds from some beginning, and waiting."""

    def now(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...


class RealClock:
    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class TokenBucket:
    """`per_minute` units a minute, and a tenth of a minute's worth at once; None is no limit.

    `take` returns how long to wait before going on, in seconds: the units are reserved at once, so that
    callers keep their order. `give_back` returns what was reserved and not used.
    """

    def __init__(self, per_minute: float | None, clock: Clock) -> None:
        self._per_second = per_minute / 60 if per_minute else None
        self._burst = max(1.0, per_minute / 10) if per_minute else 0.0
        self._clock = clock
        self._level, self._seen = self._burst, clock.now()

    def take(self, units: float) -> float:
        if self._per_second is None:
            return 0.0
        self._refill(self._per_second)
        self._level -= units
        return max(0.0, -self._level / self._per_second)

    def give_back(self, units: float) -> None:
        self._level += units

    def _refill(self, per_second: float) -> None:
        now = self._clock.now()
        self._level = min(self._burst, self._level + (now - self._seen) * per_second)
        self._seen = now
