"""`perm-ray report RUN_DIR`: make a run one HTML page, to read in a browser or to send to somebody.

The page is whole: it opens without a server, a network or perm_ray. Runs that are under way, or were cut
off, give a page too, which says what is missing.
"""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from perm_ray.cli.pages.page import report_page
from perm_ray.cli.pages.run_data import RunReport, read_run
from perm_ray.errors import DataError
from perm_ray.files import write_text_atomic


def run(options: argparse.Namespace) -> int:
    """Write the page of a run, print where it is and open it if asked."""
    try:
        report = read_run(options.run_directory)
    except OSError as error:
        raise DataError(
            f"{error.filename or options.run_directory} cannot be read ({error.strerror}): give yourself the "
            "right to read the run directory."
        ) from error
    out = write_page(report, options.out or options.run_directory / "report.html")
    print(out)
    if options.open:
        webbrowser.open(out.as_uri())
    return 0


def write_page(report: RunReport, out: Path) -> Path:
    """Write the page; returns its absolute path. `DataError` when it cannot be written there."""
    text = report_page(report)
    try:
        write_text_atomic(out, text)
    except OSError as error:
        raise DataError(
            f"The page cannot be written to {out} ({error.strerror}): give another file with --out."
        ) from error
    return out.absolute()
