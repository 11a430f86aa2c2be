"""Real signals, sent by the process to itself: one stops at a good moment, a second one at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from perm_ray.errors import Interrupted
from perm_ray.runs.signals import StopSignals

BOTH = (signal.SIGINT, signal.SIGTERM)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in BOTH]


def send(number: int) -> None:
    """Returns only if the handler did not raise."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def ignore() -> None:
    pass


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_raises_interrupted_at_once(number: signal.Signals) -> None:
    with StopSignals() as stop:
        assert stop.received is None
        with pytest.raises(Interrupted, match=f"Stopped by {number.name}"):
            send(number)
        assert stop.received == number


def test_the_handlers_of_before_are_put_back_however_it_ends() -> None:
    before = handlers()
    with StopSignals():
        assert handlers() != before
    assert handlers() == before
    with pytest.raises(Interrupted), StopSignals():
        send(signal.SIGTERM)
    assert handlers() == before
    with pytest.raises(ZeroDivisionError), StopSignals():
        raise ZeroDivisionError
    assert handlers() == before


def test_a_deferred_block_is_finished_first_and_told_to_hurry() -> None:
    hurried, finished = threading.Event(), threading.Event()

    def block(stop: StopSignals) -> None:
        with stop.deferred(on_signal=hurried.set):
            send(signal.SIGTERM)
            assert hurried.wait(5)
            finished.set()

    with StopSignals() as stop, pytest.raises(Interrupted, match="SIGTERM"):
        block(stop)
    assert finished.is_set()


def test_a_deferred_block_without_a_signal_ends_as_it_would() -> None:
    with StopSignals() as stop:
        with stop.deferred(on_signal=ignore):
            pass
        with pytest.raises(ZeroDivisionError), stop.deferred(on_signal=ignore):
            raise ZeroDivisionError


def test_a_deferred_block_that_gives_up_is_not_overruled() -> None:
    """`hurry` makes the trainer raise `Interrupted` of its own: that is the one that is heard."""

    def block(stop: StopSignals) -> None:
        with stop.deferred(on_signal=ignore):
            send(signal.SIGINT)
            raise Interrupted("Step 3 was given up as asked.")

    with StopSignals() as stop, pytest.raises(Interrupted, match="given up"):
        block(stop)


def test_after_a_deferred_block_a_signal_raises_at_once_again() -> None:
    hurried = threading.Event()
    with StopSignals() as stop:
        with stop.deferred(on_signal=hurried.set):
            pass
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
    assert not hurried.is_set()


def test_a_second_ctrl_c_ends_a_deferred_block_in_the_middle() -> None:
    first_survived = threading.Event()

    def block(stop: StopSignals) -> None:
        with stop.deferred(on_signal=ignore):
            send(signal.SIGINT)
            first_survived.set()
            send(signal.SIGINT)

    with StopSignals() as stop, pytest.raises(KeyboardInterrupt):
        block(stop)
    assert first_survived.is_set()


def test_a_second_sigterm_ends_the_process_the_hard_way() -> None:
    code = (
        "import os, signal, time\n"
        "from perm_ray.runs.signals import StopSignals\n"
        "with StopSignals() as stop, stop.deferred(on_signal=lambda: print('hurry', flush=True)):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.2)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(10)\n"
        "    print('swallowed')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "hurry\nstill here\n"
    assert "Traceback" not in done.stderr


def test_the_handlers_are_taken_back_from_a_library() -> None:
    with StopSignals() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.reinstall()
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)


def test_after_a_signal_nothing_is_taken_back_so_that_a_second_one_still_ends_it() -> None:
    with StopSignals() as stop:
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
        stop.reinstall()
        assert handlers() == [signal.default_int_handler, signal.SIG_DFL]


def test_what_is_saved_after_an_interruption_is_saved_whole_and_does_not_raise_again() -> None:
    with StopSignals() as stop:
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
        saved = False
        with stop.deferred():
            saved = True
        assert saved
        with pytest.raises(Interrupted):
            stop.check()


def test_without_a_signal_a_check_passes() -> None:
    with StopSignals() as stop:
        stop.check()


def test_a_handler_that_a_library_replaced_is_taken_back() -> None:
    with StopSignals() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.reinstall()
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
