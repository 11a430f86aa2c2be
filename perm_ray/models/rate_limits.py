"""What keeps a client from overrunning a server: rates and concurrency.

All of it is asyncio on one loop; the clock is a parameter, so that tests do not wait.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
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


class AdaptiveConcurrency:
    """How many requests may be under way: one more after each round that went well, half after trouble.

    Additive increase, multiplicative decrease, as TCP does it (D.-M. Chiu and R. Jain, 1989); always
    between 1 and `highest`. Requests that were under way together and fail together are one trouble:
    each belongs to a round, and trouble ends the round.
    """

    def __init__(self, highest: int) -> None:
        self._highest = highest
        self._limit = float(highest)
        self._under_way = 0
        self._round = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def limit(self) -> int:
        return int(self._limit)

    @asynccontextmanager
    async def place(self, timeout_s: float) -> AsyncIterator[int]:
        """Hold a place, first come, first served; yields its round.

        Raises `TimeoutError` when none was free within `timeout_s`.
        """
        await self._enter(timeout_s)
        try:
            yield self._round
        finally:
            self._under_way -= 1
            self._wake()

    def went_well(self) -> None:
        self._limit = min(float(self._highest), self._limit + 1 / self._limit)
        self._wake()

    def trouble(self, round_: int) -> None:
        if round_ == self._round:
            self._limit = max(1.0, self._limit / 2)
            self._round += 1

    async def _enter(self, timeout_s: float) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._wake()
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except (TimeoutError, asyncio.CancelledError):
            if turn.done() and not turn.cancelled():  # the place came in the moment of giving up
                self._under_way -= 1
                self._wake()
            turn.cancel()  # whoever is next in line steps over it
            raise

    def _wake(self) -> None:
        while self._waiting and self._under_way < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._under_way += 1
