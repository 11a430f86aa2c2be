"""Have the items of a `perm-ray judge` verb judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import track

from perm_ray.config.schema import Config
from perm_ray.judges.startup import Judges
from perm_ray.runs.signals import StopSignals
from perm_ray.types import JudgeItem, Judgment


@contextmanager
def judged(
    config: Config, items: Sequence[JudgeItem], console: Console
) -> Iterator[Iterable[tuple[JudgeItem, Mapping[str, Judgment]]]]:
    """Start the judges, give each item with its judgments as it is judged, and end the judges.

    Raises:
        Interrupted: A signal asked the process to stop, in the block as well.
    """
    with StopSignals() as stop, stop.raised_through_ray(), Judges(config) as judges:
        stop.reinstall()
        yield track(judges.judge(items), "judging", len(items), console=console, transient=True)


def judge_all(
    config: Config, items: Sequence[JudgeItem], console: Console
) -> dict[str, Mapping[str, Judgment]]:
    """Return the judgments of each item, by its id and by perspective."""
    with judged(config, items, console) as results:
        return {item.item_id: judgments for item, judgments in results}
