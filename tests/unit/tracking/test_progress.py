"""The display, on a terminal and in a log."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO, TextIOWrapper

import pytest
from rich.console import Console

from perm_ray.tracking.progress import RunProgress

FIRST = {
    "reward/mean": 0.2,
    "judge/resonation/mean": 3.0,
    "judge/reception/mean": 2.0,
    "rollout/tokens_per_s": 1200.4,
    "time/step_s": 10.0,
}
SECOND = {
    "reward/mean": 0.3,
    "judge/resonation/mean": 2.5,
    "judge/reception/mean": 2.0,
    "rollout/tokens_per_s": 60.0,
    "time/step_s": 20.0,
}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(progress: RunProgress, clock: Clock) -> Iterator[str]:
    """A run of three steps; yields after each event what a terminal would show."""
    with progress:
        progress.phase("starting engines")
        clock.now += 30
        for step, metrics in ((1, FIRST), (2, SECOND), (3, {})):
            for done in range(3):
                progress.phase("generate", done, 16)
            yield progress.render().plain
            progress.phase("train")
            clock.now += 10
            progress.metrics(step, metrics)
            yield progress.render().plain
        progress.note("[saved] policy in /runs/x")
        progress.phase("evaluate", 1, 4)
        yield progress.render().plain


def test_a_log_gets_plain_lines() -> None:
    out, clock = StringIO(), Clock()
    list(run(RunProgress(3, console=Console(file=out, width=40), clock=clock), clock))
    assert out.getvalue().splitlines() == [
        "starting engines ...",
        "generate ...",
        "train ...",
        "step 1/3  reward 0.200  resonation 3.000  reception 2.000  1,200 tokens/s  20s left",
        "step 2/3  reward 0.300 (+0.100)  resonation 2.500 (-0.500)  reception 2.000  60 tokens/s  15s left",
        "step 3/3",
        "[saved] policy in /runs/x",
        "evaluate ...",
    ]


def test_a_terminal_shows_where_the_run_is() -> None:
    out, clock = StringIO(), Clock()
    console = Console(file=out, force_terminal=True, width=100)
    shown = list(run(RunProgress(3, console=console, clock=clock), clock))
    assert shown[0].splitlines() == ["step 1/3 · generate 2/16 · 30s"]
    assert shown[3].splitlines() == [
        "step 3/3 · train · 50s",
        "reward 0.300 (▲0.100) · resonation 2.500 (▼0.500) · reception 2.000",
        "60 tokens/s · 15s left",
    ]
    assert shown[-1].splitlines()[0] == "step 3/3 · evaluate 1/4 · 1m00s"
    assert "\x1b[" in out.getvalue()
    assert "[saved] policy in /runs/x" in out.getvalue()


def test_a_resumed_run_counts_from_its_step() -> None:
    out = StringIO()
    with RunProgress(10, start_step=7, console=Console(file=out, force_terminal=True)) as progress:
        assert progress.render().plain.startswith("step 8/10 · starting")


def test_missing_metrics_are_shown_as_missing() -> None:
    out = StringIO()
    with RunProgress(2, console=Console(file=out)) as progress:
        progress.metrics(1, {"judge/resonation/mean": 3.0})
        progress.metrics(2, {"reward/mean": float("nan"), "judge/resonation/mean": 3.0})
    first, second = out.getvalue().splitlines()
    assert first.startswith("step 1/2  reward n/a  resonation 3.000")
    assert "reward nan" in second


def test_an_ascii_log_and_other_alphabets() -> None:
    raw = open(os.devnull, "wb")  # noqa: SIM115
    with TextIOWrapper(raw, encoding="ascii") as out:
        progress = RunProgress(2, console=Console(file=out, force_terminal=True))
        with progress:
            progress.note("安慰 ▲")
            progress.metrics(1, FIRST)
            progress.metrics(2, SECOND)
            assert progress.render().plain.isascii()


PIPED = """
import sys
from rich.console import Console
from perm_ray.tracking.progress import RunProgress

sys.stdin.readline()  # until the reader of this output is gone
with RunProgress(2, console=Console(force_terminal=sys.argv[1] == "terminal")) as progress:
    progress.note("hello")
    progress.metrics(1, {"reward/mean": 0.5})
    progress.note("still here")
print("survived", file=sys.stderr)
"""


@pytest.mark.parametrize("kind", ["terminal", "log"])
def test_a_reader_that_goes_away_does_not_stop_the_run(kind: str) -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PIPED, kind]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, errors = process.communicate("go\n", timeout=60)
    assert "survived" in errors
    assert process.returncode == 0
