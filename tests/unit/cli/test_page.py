"""The report's page: what stands in it, and that nothing a model, a judge or a user wrote can act in it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from perm_ray.cli.main import call, main
from perm_ray.cli.pages.page import number, report_page, signed
from perm_ray.cli.pages.run_data import read_run
from perm_ray.tracking.samples import parse_row
from tests.support.fake_run import write_fake_run

ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "{{ 7 * 7 }} {% raw %}",
    "javascript:alert(1)",
    "\u2028\u2029 ]]> \x00",
)
ATTACK = " ".join(ATTACKS)


class Page(HTMLParser):
    """A page as a browser would cut it up: elements with their attributes, scripts with their contents."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.text = ""
        self._raw: list[str] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._raw = self.scripts if tag == "script" else self.styles
            self._raw.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._raw = None

    def handle_data(self, data: str) -> None:
        if self._raw is None:
            self.text += data
        else:
            self._raw[-1] += data

    @property
    def rollouts(self) -> dict[str, Any]:
        return json.loads(gzip.decompress(base64.b64decode(self.scripts[0])))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_run(tmp_path_factory.mktemp("runs") / "fake", 4, 16)


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(report_page(read_run(run)))


def poison(run: Path) -> None:
    """Put attacks wherever somebody else's text stands: samples, metrics' names, configuration, summary."""
    for file in run.glob("samples/*_*.jsonl"):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            if "completion" in row:
                _poison_row(row)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text(
        "".join(
            json.dumps({**json.loads(line), f"judge/{ATTACK}/failed": 1.0, f"time/{ATTACK}_s": 1.0}) + "\n"
            for line in lines
        )
    )
    summary = json.loads((run / "summary.json").read_text())
    summary["status"] = ATTACK
    summary["answers"][0] |= {"query": ATTACK, "before": ATTACK, "reward_after": ATTACK}
    summary["answers"].append(ATTACK)
    summary["evaluation"]["before"][ATTACK] = summary["evaluation"]["after"][ATTACK] = 1.0
    (run / "summary.json").write_text(json.dumps(summary))
    config = run / "config.yaml"
    config.write_text(config.read_text() + f"# {ATTACK}".replace("\x00", ""))


def _poison_row(row: dict[str, Any]) -> None:
    row["scenario_id"] += ATTACK
    row["language"] = row["culture"] = ATTACK
    row["completion"] = f"# Analysis\n{ATTACK}\n# Response\n{ATTACK}"
    row["analysis"] = row["response"] = ATTACK
    row["prompt"] = [
        {"role": ATTACK, "content": ATTACK},
        {"role": "user", "content": f"Persona: {ATTACK}\nSituation: {ATTACK}\nMessage: {ATTACK}"},
    ]
    row["ambiguous"] = [ATTACK]
    row["masked_because"] = row["finish_reason"] = ATTACK
    for judgment in row["judgments"].values():
        judgment["reason"] = judgment["judge"] = judgment["rubric_digest"] = ATTACK


# ---- what stands in the page ------------------------------------------------------------------


def test_five_answers_before_and_after_stand_on_the_page_without_its_script(page: Page, run: Path) -> None:
    answers = json.loads((run / "summary.json").read_text())["answers"]
    assert len(answers) == 5
    assert "5 held-out answers before and after training, drawn by the seed" in page.text
    for answer in answers:
        assert answer["before"] in page.text
        assert answer["after"] in page.text


def test_the_page_holds_the_summary_and_the_rows_as_they_are_in_samples(page: Page, run: Path) -> None:
    for text in ("FINISHED", "4 of 4 steps", "reward/mean", "Reward, paired over", "config.yaml", "1e-06"):
        assert text in page.text
    report = read_run(run)
    assert [parse_row(row) for row in page.rollouts["rollouts"]] == list(report.rollouts)
    assert [parse_row(row) for row in page.rollouts["heldout"]] == list(report.heldout)
    assert page.rollouts["perspectives"][0] == {
        "name": "resonation",
        "low": 1,
        "high": 5,
        "reads": "analysis",
        "kind": "empathy",
    }
    file = run / "samples/step_000001.jsonl"
    written = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert page.rollouts["rollouts"][:16] == written


def test_numbers_are_written_for_people() -> None:
    assert [number(value) for value in (0.0, 1.5, 1e-6, 12345.6)] == [
        "0.000",
        "1.500",
        "1e-06",
        "12,346",
    ]
    assert [signed(value) for value in (0.5, -0.5)] == ["+0.500", "-0.500"]


# ---- foreign text -----------------------------------------------------------------------------


def test_no_text_of_a_run_becomes_an_element_or_a_script(run: Path, page: Page, tmp_path: Path) -> None:
    poisoned = Path(shutil.copytree(run, tmp_path / "a<script>alert(1)<"))
    poison(poisoned)
    attacked = Page(report_page(read_run(poisoned)))
    assert len(attacked.scripts) == len(page.scripts) == 2
    assert attacked.scripts[1] == page.scripts[1]  # the script is ours, whatever the run says
    assert {tag for tag, _ in attacked.elements} <= {tag for tag, _ in page.elements} | {
        "ul",
        "li",
    }  # of notes
    assert "img" not in {tag for tag, _ in attacked.elements}
    assert [a for _, a in attacked.elements if any(name.startswith("on") for name in a)] == []
    links = [value for _, a in attacked.elements for name, value in a.items() if name in ("href", "src")]
    assert all(link and (link.startswith("#") or link == "data:,") for link in links)
    # And it is all there to be read.
    row = attacked.rollouts["rollouts"][0]
    assert (row["response"], row["judgments"]["reception"]["reason"]) == (ATTACK, ATTACK)
    assert "49" not in row["scenario_id"]
    assert f"time/{ATTACK}_s" in attacked.text
    assert "<script>alert(1)</script>" in attacked.text


def test_the_policy_lets_run_the_one_script_and_load_nothing(page: Page) -> None:
    (policy,) = [
        a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy" and tag
    ]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["base-uri"] == rules["form-action"] == "'none'"
    for rule, text in (("script-src", page.scripts[1]), ("style-src", page.styles[0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert "unsafe" not in policy


def test_the_script_never_reads_html_and_the_page_has_no_style_attributes(page: Page) -> None:
    script = page.scripts[1]
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert word not in script
    assert "</" not in script
    assert [a for _, a in page.elements if "style" in a] == []


# ---- the verb ---------------------------------------------------------------------------------


def test_the_verb_writes_beside_the_run_and_prints_where(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("report", [str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert call("report", [str(run), "--out", str(tmp_path / "new/page.html")]) == 0
    assert (tmp_path / "new/page.html").read_bytes() == (run / "report.html").read_bytes()


def test_the_verb_answers_what_is_wrong_in_one_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "is not a run directory: found nothing there" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["report", str(run), "--out", str(tmp_path / "file/page.html")]) == 2
    assert "give another file with --out" in capsys.readouterr().err


def test_a_run_that_has_only_begun_gives_a_page(run: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(run / "config.yaml", begun)
    page = Page(report_page(read_run(begun)))
    assert page.rollouts == {"perspectives": [], "rollouts": [], "heldout": []}
    for text in ("NOT FINISHED", "There is no summary.json", "There are no metrics yet"):
        assert text in page.text
