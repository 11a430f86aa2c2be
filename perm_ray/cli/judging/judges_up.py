"""Judges for the verbs of `perm-ray judge`: started, and ended by a signal as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from perm_ray.config.schema import Config
from perm_ray.judges.startup import Judges
from perm_ray.runs.signals import StopSignals


@contextmanager
def judges_up(config: Config) -> Iterator[Judges]:
    """Start the judges of `config`, and end them on the way out.

    Raises:
        Interrupted: A signal asked the process to stop, in the block as well.
    """
    with StopSignals() as stop:
        try:
            with Judges(config) as judges:
                stop.reinstall()
                yield judges
        except SystemError:  # Ray raises it when a signal's exception comes while it waits
            stop.check()
            raise
