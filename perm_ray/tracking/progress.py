"""Show a person how a run is going.

On a terminal, a few lines that are redrawn: the step, its phase, the reward and each perspective's
score with their change since the first step, speed and time left. Elsewhere (a log file, a Ray job),
plain lines: one for each finished step, one for each phase of the start and the end.

The loop calls `phase`, `metrics` and `note`; none of them computes anything that can fail. The
one thing that can is the terminal itself going away, and then the display goes quiet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from perm_ray.tracking.sinks import Purpose, Sink
from perm_ray.tracking.summary import duration

_REWARD, _LOSS = "reward/mean", "finetune/loss"
_RECENT = 8  # steps that the time left is judged by


@dataclass
class _State:
    """The values on the display; written by the driver, read by the thread that redraws."""

    step: int
    phase: str = "starting"
    done: int | None = None
    total: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    first: Mapping[str, float] = field(default_factory=dict)
    durations_s: tuple[float, ...] = ()


class RunProgress(Sink):
    """`with RunProgress(steps, start_step) as progress:` `start_step` steps are already done."""

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console()
        self._total_steps = total_steps
        self._clock = clock
        self._started_s = clock()
        self._state = _State(step=start_step)
        self._quiet = False
        utf8 = self._console.encoding.lower().startswith("utf")
        self._rise, self._fall, self._dot = ("▲", "▼", " · ") if utf8 else ("+", "-", " | ")
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self.render, refresh_per_second=4)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._guarded(self._live.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._guarded(self._live.stop)

    def phase(self, name: str, done: int | None = None, total: int | None = None) -> None:
        """Show that the run now does `name`, and has done `done` of `total`."""
        state = self._state
        is_new = name != state.phase
        state.phase, state.done, state.total = name, done, total
        # A log gets the phases of the start, of the first step and of the end: later steps have a
        # line each, and their phases would bury it.
        around = not state.metrics or state.step >= self._total_steps
        if is_new and around and self._live is None:
            self._line(f"{name} ...")

    def metrics(self, step: int, metrics: Mapping[str, float], purpose: Purpose = "train") -> None:
        """Show that training step `step` (counted from 1) is done."""
        if purpose != "train":
            return
        state = self._state
        if "time/step_s" in metrics:
            state.durations_s = (*state.durations_s, metrics["time/step_s"])[-_RECENT:]
        state.step = step
        state.metrics = dict(metrics)
        state.first = state.first or state.metrics
        state.done = state.total = None
        if self._live is None:
            shown = [f"step {step}/{self._total_steps}", *self._scores("+", "-"), *self._pace()]
            self._line("  ".join(shown))

    def note(self, text: str) -> None:
        """Print a sentence for the person who watches, above the display."""
        self._line(text)

    def render(self) -> Text:
        """Return the live display as it is now."""
        state = self._state
        running = min(state.step + 1, self._total_steps)
        head = [f"step {running}/{self._total_steps}", state.phase + self._count()]
        head.append(duration(self._clock() - self._started_s))
        lines = [head, self._scores(self._rise, self._fall), self._pace()]
        return Text("\n".join(self._dot.join(line) for line in lines if line), overflow="fold")

    def _count(self) -> str:
        state = self._state
        if state.done is None:
            return ""
        return f" {state.done}" if state.total is None else f" {state.done}/{state.total}"

    def _scores(self, rise: str, fall: str) -> list[str]:
        """Return the reward and each perspective's mean score (of fine-tuning the loss), with the change
        since the first step."""
        shown = {_LOSS: "loss"} if _LOSS in self._state.metrics else {_REWARD: "reward"}
        for name in self._state.metrics:
            if name.startswith("judge/") and name.endswith("/mean"):
                shown[name] = name.removeprefix("judge/").removesuffix("/mean")
        texts = []
        for name, label in shown.items():
            value, first = self._state.metrics.get(name), self._state.first.get(name)
            if value is None:
                texts.append(f"{label} n/a")
                continue
            change = 0.0 if first is None else value - first
            arrow = rise if change > 0 else fall
            texts.append(f"{label} {value:.3f}" + (f" ({arrow}{abs(change):.3f})" if change else ""))
        return texts if self._state.metrics else []

    def _pace(self) -> list[str]:
        """Return the speed of sampling, and the time left at the pace of the recent steps."""
        state, pace = self._state, []
        for name in ("rollout/tokens_per_s", "finetune/tokens_per_s"):
            if name in state.metrics:
                pace.append(f"{state.metrics[name]:,.0f} tokens/s")
        left = max(0, self._total_steps - state.step)
        if left and state.durations_s:
            pace.append(f"{duration(left * sum(state.durations_s) / len(state.durations_s))} left")
        return pace

    def _line(self, text: str) -> None:
        # A log may be ASCII (LANG=C): what it cannot hold becomes "?", rather than an error.
        encoding = self._console.encoding
        safe = text.encode(encoding, errors="replace").decode(encoding)
        self._guarded(lambda: self._console.print(safe, markup=False, highlight=False, soft_wrap=True))

    def _guarded(self, write: Callable[[], None]) -> None:
        """Fault boundary, the terminal: a closed pipe or a lost session ends the display, not the run."""
        if self._quiet:
            return
        try:
            write()
        except (OSError, SystemExit):  # rich turns a broken pipe into an exit of the process
            self._quiet = True
