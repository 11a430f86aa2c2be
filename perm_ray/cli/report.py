"""`perm-ray report RUN_DIR`: a run directory as one HTML page, to read in a browser or to send to somebody.

The page is whole: it opens without a server, a network or perm_ray. Runs that are under way, or were cut
off, give a page too, which says what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perm_ray.errors import DataError

if TYPE_CHECKING:
    from perm_ray.cli.pages.run_data import RunReport

NAME = "report.html"


def parser() -> argparse.ArgumentParser:
    """The options of `perm-ray report`."""
    parser = argparse.ArgumentParser(
        prog="perm-ray report",
        description="A run as one HTML page: its figures, and every rollout with its judgments.",
    )
    parser.add_argument("run_directory", type=Path, metavar="RUN_DIR", help="such as runs/<name>")
    parser.add_argument(
        "--out", type=Path, default=None, help=f"the page (default: RUN_DIR/{NAME})", metavar="FILE"
    )
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Returns the exit code; raises `PermRayError`s for `cli.py` to print."""
    options = parser().parse_args(arguments)
    from perm_ray.cli.pages.run_data import read_run

    try:
        report = read_run(options.run_directory)
    except OSError as error:
        raise DataError(
            f"{error.filename or options.run_directory} cannot be read ({error.strerror}): give yourself the "
            "right to read the run directory."
        ) from error
    out = write_page(report, options.out or options.run_directory / NAME)
    print(out)
    if options.open:
        import webbrowser

        webbrowser.open(out.as_uri())
    return 0


def write_page(report: RunReport, out: Path) -> Path:
    """Write the page; returns its absolute path. `DataError` when it cannot be written there."""
    from perm_ray.cli.pages.page import report_page
    from perm_ray.files import write_text_atomic

    text = report_page(report)
    try:
        write_text_atomic(out, text)
    except OSError as error:
        raise DataError(
            f"The page cannot be written to {out} ({error.strerror}): give another file with --out."
        ) from error
    return out.absolute()


if __name__ == "__main__":
    from perm_ray.cli.main import run_verb

    sys.exit(run_verb("report", sys.argv[1:]))
