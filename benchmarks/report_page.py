"""The run report at size: how large the page is, how fast it opens, how fast its filters answer.

On an invented run of 200 steps x 64 rollouts, in headless Chromium. Called by other benchmarks; it needs no
configuration and no model.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from perm_ray.errors import UserError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DESCRIPTION = "The run report: 12,800 rollouts in one page"
NUM_STEPS, ROLLOUTS_PER_STEP = 200, 64
ARGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_TIMEOUT_MS = 60_000
# The form's field and what is put into it; each is measured from the change to the frame after it.
FILTERS = (
    ("text", "garden"),
    ("text", "kitchen clock"),
    ("step_low", "150"),
    ("reward_high", "0.1"),
    ("perspective", "reception"),
    ("score_high", "2"),
    ("status", "masked"),
    ("language", "de"),
    ("sort", "disagreement"),
    ("sort", "reward_up"),
)
_MEASURE = """async ([name, value]) => {
  const form = document.getElementById("filters");
  form.reset();
  await new Promise((resolve) => setTimeout(resolve, 50));
  const field = form.elements[name];
  const began = performance.now();
  field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  return performance.now() - began;
}"""


def chromium_path() -> str | None:
    """Where the system's Chromium is, if there is one."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser that asks nothing of the network. `UserError` when there is none."""
    path = chromium_path()
    if path is None:
        raise UserError("The report is measured in Chromium, and none was found: install it (apt: chromium).")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise UserError("The report is measured with playwright: pip install playwright.") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGS))
        try:
            yield browser
        finally:
            browser.close()


def open_report(browser: Browser, file: Path) -> Page:
    """The page when its rollouts are there."""
    page = browser.new_page()
    page.goto(file.absolute().as_uri(), timeout=_TIMEOUT_MS)
    page.wait_for_selector("html[data-ready]", state="attached", timeout=_TIMEOUT_MS)
    return page


def measure_report() -> dict[str, float]:
    """`report_bytes`; `report_render_ms`, from navigation until the rollouts can be read (median of 3);
    `report_filter_ms`, the median of several filters and orders; and the slowest of them."""
    from perm_ray.cli.pages.run_data import read_run
    from perm_ray.cli.report import write_page
    from tests.support.fake_run import write_fake_run

    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        run = write_fake_run(Path(folder) / "fake", NUM_STEPS, ROLLOUTS_PER_STEP)
        file = write_page(read_run(run), run / "report.html")
        renders: list[float] = []
        for _ in range(3):
            page = open_report(browser, file)
            renders.append(page.evaluate("performance.getEntriesByName('report-ready')[0].startTime"))
            page.close()
        page = open_report(browser, file)
        filters: list[float] = [page.evaluate(_MEASURE, list(each)) for each in FILTERS]
        return {
            "report_bytes": float(file.stat().st_size),
            "report_render_ms": median(renders),
            "report_filter_ms": median(filters),
            "report_filter_max_ms": max(filters),
        }
