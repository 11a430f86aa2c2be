"""The report in a browser: it filters, keyboard and phone will do, and nothing in it acts.

The pages are of invented runs. Without Chromium or playwright there is nothing to test with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.report_page import chromium, chromium_path, open_report
from perm_ray.cli.pages.run_data import read_run
from perm_ray.cli.report import write_page
from perm_ray.tracking.samples import RolloutRow
from tests.support.fake_run import write_fake_run

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if chromium_path() is None:
    pytest.skip("there is no Chromium on this machine", allow_module_level=True)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ATTACK = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    "<svg onload='window.hacked = 3'><a href='javascript:window.hacked = 4'>here</a> $& ${hacked}"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_fake_run(tmp_path_factory.mktemp("runs") / "fake", 12, 32)
    file = path / "samples/step_000001.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    row = rows[0]
    row["completion"], row["response"] = f"# Analysis\nShe waits.\n# Response\n{ATTACK}", ATTACK
    row["analysis"] = "She waits."
    row["judgments"]["reception"]["reason"] = ATTACK
    for each in rows:
        if each["scenario_id"] == row["scenario_id"]:
            each["culture"] = ATTACK
    file.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    write_page(read_run(path), path / "report.html")
    return path


@pytest.fixture(scope="module")
def rows(run: Path) -> tuple[RolloutRow, ...]:
    return read_run(run).rollouts


@pytest.fixture
def page(browser: Browser, run: Path) -> Iterator[Page]:
    page = open_report(browser, run / "report.html")
    yield page
    page.close()


def fill(page: Page, **fields: str) -> None:
    """Choose and write, as a person does, from a form that is clear."""
    page.locator("#clear").click()
    for name, value in fields.items():
        field = page.locator(f"#filters [name={name}]")
        if field.evaluate("node => node.tagName") == "SELECT":
            field.select_option(value)
        elif field.get_attribute("type") == "checkbox":
            field.check()
        else:
            field.fill(value)


def count(page: Page) -> int:
    return int((page.locator("#count").inner_text()).split(" ")[0].replace(",", ""))


def listed(page: Page) -> list[str]:
    """Which rollouts the list's first page has, as `step 3 · train-001 #2`."""
    return page.locator("#rollout-list .option .line > span:first-child").all_inner_texts()


def name(row: RolloutRow) -> str:
    return f"step {row.step} · {row.scenario_id} #{row.index}"


def chosen(page: Page) -> str:
    return page.locator("#rollout-detail h3").inner_text().removesuffix(" link")


# ---- the page as a whole ----------------------------------------------------------------------


def test_the_page_opens_without_an_error_and_asks_nobody(browser: Browser, run: Path) -> None:
    page = browser.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((run / "report.html").as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    page.locator("#rollout-detail details summary").first.click()
    prompt = page.locator("#rollout-detail details").first.inner_text()
    assert read_run(run).rollouts[0].prompt[0].content in prompt
    assert complaints == []
    page.close()


def test_what_a_model_wrote_is_read_and_does_not_run(page: Page) -> None:
    fill(page, text="window.hacked")
    assert count(page) == 1
    detail = page.locator("#rollout-detail")
    assert ATTACK in detail.locator(".part").nth(1).locator("p.prose").inner_text()
    detail.locator("details summary").last.click()
    assert detail.locator("details").last.locator(".prose").inner_text() == (
        f"# Analysis\nShe waits.\n# Response\n{ATTACK}"
    )
    assert page.locator("img, [onerror], [onload], a[href^=javascript]").count() == 0
    page.wait_for_timeout(100)
    assert page.evaluate("typeof window.hacked") == "undefined"


def test_a_script_that_got_in_would_be_stopped(page: Page) -> None:
    """What the policy of the page is for."""
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.hacked = 5";
          document.body.append(script);
          document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.hacked = 6'>");
        }"""
    )
    page.wait_for_timeout(100)
    assert page.evaluate("typeof window.hacked") == "undefined"


@pytest.mark.parametrize(
    ("width", "scheme"), [(400, "light"), (400, "dark"), (1280, "light"), (1280, "dark")]
)
def test_nothing_is_wider_than_the_screen(
    browser: Browser, run: Path, tmp_path: Path, width: int, scheme: Any
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto((run / "report.html").as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    for summary in page.locator("details > summary").all():
        summary.click()
    fill(page, text="window.hacked")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 27)"
    assert dark == (scheme == "dark")
    shot = page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
    assert len(shot) > 50_000
    context.close()


# ---- filters ----------------------------------------------------------------------------------


def test_filters_find_the_right_rollouts(page: Page, rows: tuple[RolloutRow, ...]) -> None:
    def reception(row: RolloutRow) -> float | None:
        return row.judgments["reception"].score

    def texts(row: RolloutRow) -> str:
        reasons = " ".join(judgment.reason for judgment in row.judgments.values())
        return f"{row.prompt[-1].content} {row.completion} {reasons} {row.masked_because}".lower()

    def rewarded(row: RolloutRow, low: float, high: float) -> bool:
        return row.reward is not None and low <= row.reward.value <= high

    cases = [
        ({}, lambda row: row.step > 0),
        ({"step_low": "3", "step_high": "5"}, lambda row: 3 <= row.step <= 5),
        ({"reward_low": "0.1", "reward_high": "0.3"}, lambda row: rewarded(row, 0.1, 0.3)),
        (
            {"perspective": "reception", "score_high": "2"},
            lambda row: (score := reception(row)) is not None and score <= 2,
        ),
        ({"status": "rewarded"}, lambda row: row.reward is not None),
        ({"status": "masked"}, lambda row: row.reward is None),
        ({"status": "truncated"}, lambda row: row.finish_reason == "length"),
        ({"status": "failed"}, lambda row: any(j.status == "failed" for j in row.judgments.values())),
        (
            {"status": "skipped", "perspective": "resonation"},
            lambda row: row.judgments["resonation"].status == "skipped",
        ),
        (
            {"status": "unparseable", "perspective": "bystander"},
            lambda row: row.judgments["bystander"].status == "unparseable",
        ),
        ({"language": "de"}, lambda row: row.language == "de"),
        ({"culture": "Irish"}, lambda row: row.culture == "Irish"),
        ({"ambiguous": "yes"}, lambda row: bool(row.ambiguous)),
        ({"text": "Kitchen CLOCK"}, lambda row: "kitchen clock" in texts(row)),
        ({"text": "train-003"}, lambda row: row.scenario_id == "train-003"),
        (
            {"text": "garden", "language": "en", "step_high": "6"},
            lambda row: "garden" in texts(row) and row.language == "en" and row.step <= 6,
        ),
    ]
    for fields, passes in cases:
        expected = [row for row in rows if passes(row)]
        fill(page, **fields)
        assert count(page) == len(expected), fields
        assert listed(page) == [name(row) for row in expected[:40]], fields
    fill(page, text="nobody ever wrote this")
    assert (count(page), listed(page)) == (0, [])
    assert "No rollout fits" in page.locator("#rollout-detail").inner_text()


def test_orders(page: Page, rows: tuple[RolloutRow, ...]) -> None:
    rewarded = [row for row in rows if row.reward is not None]
    worst = min(rewarded, key=lambda row: row.reward.value if row.reward else 0.0)
    page.locator("[data-preset=worst]").click()
    assert listed(page)[0] == name(worst)
    fill(page, sort="long")
    assert listed(page)[0] == name(max(rows, key=lambda row: row.tokens))
    fill(page, sort="reward_up")
    last = page.locator("#rollout-list .pager button").last
    while last.is_enabled():
        last.click()
    assert "masked" in page.locator("#rollout-list .option").last.inner_text()

    def apart(row: RolloutRow) -> float:
        scores = [j.score for n, j in row.judgments.items() if n != "bystander" and j.score is not None]
        return round(max(scores) - min(scores), 3) if len(scores) > 1 else -1.0

    page.locator("[data-preset=disagree]").click()
    first = next(row for row in rows if name(row) == listed(page)[0])
    assert apart(first) == pytest.approx(max(map(apart, rows)), abs=2e-3)


# ---- reading ----------------------------------------------------------------------------------


def test_the_detail_says_why(page: Page, rows: tuple[RolloutRow, ...]) -> None:
    row = next(row for row in rows if all(judgment.score is not None for judgment in row.judgments.values()))
    fill(page, text=row.judgments["expression"].reason)
    assert count(page) == 1
    text = page.locator("#rollout-detail").inner_text()
    assert row.reward is not None
    assert f"{row.reward.value:+.3f}" in text
    assert f"policy version {row.version}" in text
    for perspective, judgment in row.judgments.items():
        card = page.locator("#rollout-detail .judgment", has_text=perspective).inner_text()
        assert f"{judgment.score:.2f}" in card
        assert judgment.reason in card
        assert all(criterion in card for criterion in judgment.criteria)
    assert row.analysis is not None
    assert row.analysis in text


def test_a_rollout_has_a_link_that_opens_it(browser: Browser, page: Page, run: Path) -> None:
    fill(page, step_low="7", step_high="7", text="kitchen")
    assert page.evaluate("CSS.highlights.get('found').size") > 0
    link = page.locator("#rollout-detail a.link").get_attribute("href") or ""
    assert link.startswith("#rollout/7/train-")
    title = chosen(page)
    other = browser.new_page()
    other.goto((run / "report.html").as_uri() + link)
    other.wait_for_selector("html[data-ready]", state="attached")
    assert chosen(other) == title
    assert count(other) == 384
    other.close()


def test_a_group_is_read_answer_by_answer(page: Page) -> None:
    buttons = page.locator("#rollout-detail [role=group] button")
    assert buttons.count() == 8
    buttons.nth(5).click()
    assert chosen(page).endswith("answer #5")
    assert buttons.nth(5).get_attribute("aria-pressed") == "true"
    assert page.locator("#rollout-list [aria-selected=true]").inner_text().split("\n")[0].endswith("#5")


def test_heldout_answers_stand_side_by_side(page: Page, run: Path) -> None:
    heldout = read_run(run).heldout
    detail = page.locator("#heldout-detail")
    assert page.locator("#heldout-list .option").count() == 16
    page.locator("#heldout-form [name=sort]").select_option("scenario")
    titles = detail.locator(".side .title").all_inner_texts()
    assert titles == ["before training", "after step 12"]
    for side, step in enumerate((0, 12)):
        row = next(row for row in heldout if row.step == step)
        words = (row.analysis or "").splitlines()[0]
        assert words in detail.locator(".side").nth(side).inner_text()


# ---- the keyboard -----------------------------------------------------------------------------


def test_a_walk_by_keyboard(page: Page) -> None:
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("step")  # goes into the field, and `/` would too
    page.keyboard.press("Escape")
    assert page.locator("#search").input_value() == ""
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "listbox"
    before = chosen(page)
    page.keyboard.press("ArrowDown")
    assert chosen(page) != before
    page.keyboard.press("ArrowUp")
    assert chosen(page) == before
    page.keyboard.press("PageDown")
    assert page.locator("#rollout-list .pager span").inner_text().startswith("page 2 of ")
    active = page.evaluate("document.activeElement.getAttribute('aria-activedescendant')")
    assert page.locator(f"[id='{active}']").get_attribute("aria-selected") == "true"
    page.keyboard.press("End")
    assert page.locator("#rollout-list [aria-selected=true]").get_attribute("aria-posinset") == "384"
    page.keyboard.press("Home")
    assert chosen(page) == before
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "rollout-detail"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "rollout-list-box"


def test_everything_can_be_reached_by_tab_and_has_a_name(page: Page) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, [tabindex='0'], [role]")]
          .filter((node) => node.checkVisibility())
          .filter((node) => !node.closest("label") && !node.getAttribute("aria-label"))
          .filter((node) => !node.textContent.trim())
          .map((node) => node.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
    page.locator("#search").focus()
    reached = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.name || document.activeElement.id"))
    assert {"step_low", "score_high", "status", "culture", "sort", "ambiguous", "rollout-list-box"} <= reached


# ---- runs that are not whole ------------------------------------------------------------------


def test_a_run_that_has_only_begun_gives_a_page_that_says_so(
    browser: Browser, run: Path, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text((run / "config.yaml").read_text())
    page = open_report(browser, write_page(read_run(begun), begun / "report.html"))
    assert "no rollouts of training steps yet" in page.locator("#rollouts").inner_text()
    assert "no held-out answers of two evaluations" in page.locator("#heldout").inner_text()
    assert page.locator("#browser").is_hidden()
    page.close()
