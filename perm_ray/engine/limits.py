"""What keeps a client from overrunning a server: rates, concurrency and a circuit breaker.

All of it is asyncio on one loop; the clock is a parameter, so that tests do not wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
    """At most `per_minute` units a minute, a tenth of a minute's worth at once; None is no limit.

    `take` returns how long to wait before going on: the units are reserved at once, so that callers keep
    their order. `give_back` returns what was reserved and not used.
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


class AdaptiveConcurrency:
    """How many requests may be under way: one more after each round that went well, half after trouble.

    Additive increase, multiplicative decrease, as TCP does it (D.-M. Chiu and R. Jain, 1989); always
    between 1 and `highest`.
    """

    def __init__(self, highest: int) -> None:
        self._highest = highest
        self._limit = float(highest)
        self._under_way = 0
        self._freed = asyncio.Condition()

    @property
    def limit(self) -> int:
        return int(self._limit)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it."""
        async with self._freed:
            await self._freed.wait_for(lambda: self._under_way < self.limit)
            self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            async with self._freed:
                self._freed.notify_all()

    def went_well(self) -> None:
        self._limit = min(float(self._highest), self._limit + 1 / self._limit)

    def trouble(self) -> None:
        self._limit = max(1.0, self._limit / 2)


class CircuitBreaker:
    """Stops asking a server that only fails: open after `failures` in a row, for `cooldown_s`; then one
    request is let through, and what becomes of it decides."""

    def __init__(self, failures: int, cooldown_s: float, clock: Clock) -> None:
        self._allowed = failures
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._in_a_row = 0
        self._open_until: float | None = None
        self._on_trial = False

    @property
    def state(self) -> str:
        """closed, open or half-open."""
        if self._open_until is None:
            return "closed"
        return "open" if self._clock.now() < self._open_until or self._on_trial else "half-open"

    def lets_through(self) -> bool:
        """Whether a request may be made now; in the half-open state only one may."""
        if self.state == "half-open":
            self._on_trial = True
            return True
        return self.state == "closed"

    def succeeded(self) -> None:
        self._in_a_row, self._open_until, self._on_trial = 0, None, False

    def failed(self) -> None:
        self._in_a_row += 1
        if self._on_trial or self._in_a_row >= self._allowed:
            self._open_until, self._on_trial = self._clock.now() + self._cooldown_s, False

    def undecided(self) -> None:
        """A request on trial came to no end (it was cancelled, or refused for another reason)."""
        self._on_trial = False
