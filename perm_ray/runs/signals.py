"""Ctrl-C and SIGTERM, turned into one exception at a moment when nothing is lost by it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from perm_ray.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While entered, the first signal raises `Interrupted` in the main thread; a second one ends the
    process the hard way, as if nobody had caught it."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._when_deferred: Callable[[], None] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def reinstall(self) -> None:
        """Be the handler again, after a library (`ray.init` for one) put its own in our place."""
        if self._previous and self.received is None:  # only while entered: never in a library's caller
            for number in _SIGNALS:
                signal.signal(number, self._receive)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self, on_signal: Callable[[], None] | None = None) -> Iterator[None]:
        """Let the block finish first: a signal in it calls `on_signal` (in a thread) and raises at the end.

        A signal from before the block, whose exception was caught by the caller, is not raised again.
        """
        already = self.received is not None
        self._when_deferred = on_signal or (lambda: None)
        try:
            yield
        finally:
            self._when_deferred = None
        if not already:
            self.check()

    @contextmanager
    def raised_through_ray(self) -> Iterator[None]:
        """Raise `Interrupted` where Ray made a `SystemError` of it: a signal came while Ray waited."""
        try:
            yield
        except SystemError:
            self.check()
            raise

    def check(self) -> None:
        """Raise `Interrupted` if there was a signal: between phases, should a library have swallowed it."""
        if self.received is not None:
            raise self._interrupted()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._when_deferred is None:
            raise self._interrupted()
        threading.Thread(target=self._when_deferred, daemon=True).start()

    def _interrupted(self) -> Interrupted:
        assert self.received is not None
        return Interrupted(f"Stopped by {signal.Signals(self.received).name}.")
