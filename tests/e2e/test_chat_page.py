"""`perm-ray chat`: the page in a browser, and the whole conversation with real models in the terminal."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.report_page import chromium, chromium_path
from perm_ray.cli.pages.chat_page import chat_app
from perm_ray.data.items import read_preferences
from tests.support.program import environment
from tests.support.scripted_chat import GOOD, scripted_chat
from tests.support.scripted_server import on_loopback
from tests.support.tiny_model import write_tiny_model
from tests.support.tiny_run import tiny_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ATTACK = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    "<a href='javascript:window.hacked = 3'>here</a> $& ${hacked}"
)
HOSTILE = ("# Analysis\n", ATTACK[:40], f"{ATTACK[40:]}\n# Response\n", ATTACK)
PROGRAM = (sys.executable, "-m", "perm_ray.cli.main")
needs_browser = pytest.mark.skipif(chromium_path() is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [tiny_model, write_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=7)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with chromium() as browser:
        yield browser


def run_program(command: list[str], typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, input=typed, capture_output=True, text=True, timeout=360, env=environment(), check=False
    )


@contextmanager
def served_page(models: list[Path], ratings: Path, scripts: Any, **settings: Any) -> Iterator[str]:
    with (
        scripted_chat(models, scripts, ratings, **settings) as chat,
        on_loopback(chat_app(chat, "Talk", "secret")) as address,
    ):
        yield f"{address}/secret/"


def opened(browser: Browser, address: str, **settings: Any) -> tuple[Page, list[str]]:
    page = browser.new_page(**settings)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: None if address in request.url else complaints.append(request.url))
    page.goto(address)
    page.wait_for_selector("html[data-ready]", state="attached")
    return page, complaints


def status(page: Page, words: str) -> None:
    page.wait_for_function(
        "words => document.getElementById('status').textContent.includes(words)", arg=words
    )


@needs_browser
def test_two_answers_stream_and_a_double_click_is_one_rating(
    browser: Browser, models: list[Path], tmp_path: Path
) -> None:
    ratings = tmp_path / "ratings.jsonl"
    with served_page(models, ratings, (GOOD, HOSTILE), pause_s=0.3) as address:
        page, complaints = opened(browser, address)
        assert page.locator("[name=query]").input_value()  # a scenario is chosen already
        page.locator("#ask").click()
        page.wait_for_function(
            "() => [...document.querySelectorAll('.written')].every((each) => each.textContent.length > 5)"
        )
        status(page, "Writing")  # both have begun, and neither is done
        status(page, "complete and judged")
        answers = page.locator("article")
        assert "That sounds heavy." in answers.nth(0).inner_text()
        assert str(models[0]) in answers.nth(0).inner_text()
        assert ATTACK in answers.nth(1).locator(".written .card").inner_text()
        assert f"It says: {ATTACK}" in answers.nth(1).locator(".scores").inner_text()
        assert page.locator("article img, article script, article a").count() == 0
        answers.nth(0).locator(".prefer").dblclick()
        status(page, "Kept: you would rather receive answer 1")
        page.keyboard.press("2")  # too late
        assert page.evaluate("window.hacked") is None
        page.close()
    assert complaints == []
    (pair,), _ = read_preferences(ratings)
    assert pair.better.sections.response == "That sounds heavy."
    assert pair.worse.sections.response == ATTACK


@needs_browser
def test_names_and_scores_are_hidden_until_the_choice_by_keyboard_on_a_phone(
    browser: Browser, models: list[Path], tmp_path: Path
) -> None:
    ratings = tmp_path / "ratings.jsonl"
    with served_page(models, ratings, (GOOD, HOSTILE)) as address:
        page, complaints = opened(browser, address, viewport={"width": 360, "height": 740})
        page.locator("#hidden").focus()
        page.keyboard.press("Space")
        page.locator("#choice").select_option("")
        for name, text in (("persona", "Noor, 75"), ("scenario", "She is alone."), ("query", "Nobody came.")):
            page.locator(f"[name={name}]").fill(text)
        page.keyboard.press("Control+Enter")
        status(page, "complete and judged")
        page.locator("h1").click()  # out of the text: 1 and 2 are letters there
        assert page.locator("article .name").all_inner_texts() == ["", ""]
        assert not page.locator(".judgment").first.is_visible()
        page.keyboard.press("2")
        status(page, "Kept: you would rather receive answer 2")
        assert set(page.locator("article .name").all_inner_texts()) == set(map(str, models))
        assert page.locator(".judgment").first.is_visible()
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0
        page.close()
    assert complaints == []
    (pair,), _ = read_preferences(ratings)
    assert pair.better.scenario.query == "Nobody came."


@needs_browser
def test_an_answer_can_be_stopped_and_a_failure_is_told(
    browser: Browser, models: list[Path], tmp_path: Path
) -> None:
    ratings = tmp_path / "ratings.jsonl"
    with served_page(models, ratings, (GOOD * 99, GOOD * 99), pause_s=0.1) as address:
        page, _ = opened(browser, address)
        page.locator("#ask").click()
        page.locator("#stop").click()
        status(page, "Stopped.")
        assert page.locator(".prefer").first.is_disabled()
        page.close()
    with served_page(models, ratings, (GOOD, GOOD), status=500) as address:
        page, _ = opened(browser, address)
        page.locator("#ask").click()
        status(page, "broke off")
        assert "out of memory" in page.locator("article").first.inner_text()
        page.locator("[name=query]").fill("a " * 4000)
        page.locator("#ask").click()
        status(page, "prompt.max_tokens")
        page.close()
    assert not ratings.exists()


def test_only_who_knows_the_address_is_answered(models: list[Path], tmp_path: Path) -> None:
    def fetch(address: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        request = urllib.request.Request(address, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return reply.status, reply
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    with served_page(models, tmp_path / "ratings.jsonl", (GOOD, GOOD)) as address:
        assert fetch(address)[0] == 200
        assert fetch(address.replace("secret", "guess"))[0] == 404
        assert fetch(address, Host="evil.example")[0] == 400
        assert fetch(f"{address}ask", b"x" * 70_000)[0] == 413
        assert fetch(f"{address}ask", b"{}") == (400, '{"error":"persona: Field required."}')
        assert fetch(f"{address}keep", b"[")[0] == 400
        unknown = json.dumps({"pair": "x", "side": 0}).encode()
        assert "no longer known" in fetch(f"{address}keep", unknown)[1]
        headers = fetch(address)[1].headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.ray
@pytest.mark.timeout(500)
def test_a_whole_conversation_in_the_terminal_and_what_becomes_of_it(
    models: list[Path], tmp_path: Path
) -> None:
    """Slow since it is real: two vLLM servers, and the judges twice."""
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_run(models[0], tmp_path / "runs", mlflow=False))
    command = [*PROGRAM, "chat", *map(str, models), "--terminal", "--hidden", "--config", str(config)]
    done = run_program([*command, "--out", str(tmp_path / "chat")], "99\n1\n1\n")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "There is no scenario '99'" in done.stdout
    assert "--- answer 2\n" in done.stdout
    assert "answer 1: " in done.stdout
    assert "Kept in" in done.stdout
    ratings = tmp_path / "chat" / "ratings.jsonl"
    rows, _ = read_preferences(ratings)
    assert len(rows) == 1

    verb = [*PROGRAM, "judge", "calibrate", "--data", str(ratings), "--out", str(tmp_path / "found")]
    done = run_program([*verb, "--config", str(config)])
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found" / "pairs.json").read_text())
    assert found["pairs"] == 1
    assert found["shares"]["expression"]["mean"] in (0.0, 0.5, 1.0)


def test_what_cannot_be_talked_to_is_refused(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, said in (
            ((tmp_path / "nowhere",), "does not exist"),
            ((models[0], models[1], models[0]), "one model or two"),
            (("run.seed=1",), "A model must be named"),
            ((models[0], "--port", taken.getsockname()[1]), "--port must be free"),
        ):
            done = run_program([*PROGRAM, "chat", *map(str, arguments)])
            assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
            assert said in done.stderr
    assert not (tmp_path / "chat").exists()
