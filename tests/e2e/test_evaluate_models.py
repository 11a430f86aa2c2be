"""`perm-ray evaluate` as a person runs it: two models, a page, and nothing done twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fake_endpoint import FakeEndpoint
from tests.support.program import environment
from tests.support.tiny_model import write_tiny_model
from tests.support.tiny_run import tiny_run

TRUTH = [
    {"id": "a", "category": "facts", "query": "Is it so?", "choices": ["Yes.", "No.", "Both."], "answer": 1},
    {"id": "b", "category": "facts", "query": "And so?", "choices": ["Yes.", "No."], "answer": 0},
    {"id": "c", "category": "crisis", "query": "Help me.", "must": [r"\b911\b"]},
]


def run_program(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perm_ray.cli.main", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=500, env=environment(), check=False
    )


def evaluate(*arguments: object, verb: str = "perm") -> subprocess.CompletedProcess[str]:
    return run_program("evaluate", verb, *arguments)


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_two_models_are_compared_and_the_answers_kept(tiny_model: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=7)
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_run(tiny_model, tmp_path / "runs", mlflow=False))
    out = tmp_path / "found"
    given = (tiny_model, other, "--config", config, "--limit", 3, "--out", out)
    done = evaluate(*given)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = json.loads((out / "evaluation.json").read_text())["models"]
    assert first["num_answers"] == second["num_answers"] == 3
    assert first["differences"] == {}
    assert second["differences"]["tokens"]["pairs"] == 3
    assert {"reward", "resonation", "format", "distinct_2"} <= first["means"].keys()
    page = (out / "evaluation.html").read_text()
    assert str(other) in page
    assert "<script" not in page
    files = {file: file.read_bytes() for file in (out / "answers").iterdir()}
    assert len(files) == 2

    again = evaluate(*given)  # everything is there: no engine is started
    assert again.returncode == 0
    assert {file: file.read_bytes() for file in (out / "answers").iterdir()} == files
    changed = evaluate(*given, "rollout.temperature=0.5")
    assert changed.returncode == 2
    assert "other sampling" in changed.stderr


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_an_endpoint_is_evaluated_beside_a_model(tiny_model: Path, tmp_path: Path) -> None:
    config, out = tmp_path / "tiny.yaml", tmp_path / "found"
    with FakeEndpoint(answer=lambda _: "# Analysis\nShe waits.\n# Response\nI hear you.") as endpoint:
        away = f"models: {{away: {{base_url: {endpoint.base_url}, model: m}}, judge:"
        text = tiny_run(tiny_model, tmp_path / "runs", mlflow=False)
        config.write_text(text.replace("models: {judge:", away))
        given = (tiny_model, "away", "--config", config, "--limit", 2, "--out", out)
        done = evaluate(*given, "rollout.top_p=0.9")
        assert done.returncode == 0, done.stderr[-3000:]
        asked = [request for request in endpoint.requests if request["max_tokens"] > 1]
    assert len(asked) == 2
    assert asked[0]["top_p"] == 0.9
    assert [message["role"] for message in asked[0]["messages"]] == ["system", "user"]
    _, found = json.loads((out / "evaluation.json").read_text())["models"]
    assert found["means"]["format"] == 1.0
    assert found["means"]["tokens"] == 9.0  # words, to this endpoint
    assert "reward" in found["means"]


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_items_without_a_judge_are_asked_once(tiny_model: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=7)
    config, items, out = tmp_path / "tiny.yaml", tmp_path / "mine.jsonl", tmp_path / "found"
    config.write_text(tiny_run(tiny_model, tmp_path / "runs", mlflow=False))
    items.write_text("".join(f"{json.dumps(row)}\n" for row in TRUTH))
    given = (tiny_model, other, "--config", config, "--data", items, "--out", out)
    done = evaluate(*given, verb="truth")
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = json.loads((out / "evaluation.json").read_text())["models"]
    assert first["num_answers"] == 3
    assert first["means"]["crisis"] == 0.0
    assert first["means"]["unanswered"] == 0.0
    assert second["differences"]["all items"]["pairs"] == 3
    rows = [json.loads(line) for line in sorted((out / "answers").iterdir())[0].read_text().splitlines()]
    assert [len(row.get("probabilities", ())) for row in rows] == [3, 2, 0]
    assert sum(rows[0]["probabilities"]) == pytest.approx(1.0)
    assert "A guess is right in: facts 0.42" in (out / "evaluation.html").read_text()

    files = {file: file.stat().st_mtime_ns for file in (out / "answers").iterdir()}
    assert evaluate(*given, verb="truth").returncode == 0  # no engine is started
    assert {file: file.stat().st_mtime_ns for file in (out / "answers").iterdir()} == files
    items.write_text(json.dumps(TRUTH[0]) + "\n" + json.dumps(TRUTH[1]))
    changed = evaluate(*given, verb="truth")
    assert changed.returncode == 2
    assert "other items" in changed.stderr


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_pairs_of_replies_are_judged_in_both_orders(tiny_model: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=7)
    config, out = tmp_path / "tiny.yaml", tmp_path / "found"
    config.write_text(tiny_run(tiny_model, tmp_path / "runs", mlflow=False))
    given = (tiny_model, other, "--config", config, "--limit", 3, "--out", out)
    done = evaluate(*given, verb="compare")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((out / "evaluation.json").read_text())
    (pair,) = found["pairs"]
    assert 0.0 <= pair["win_rate"]["low"] <= pair["win_rate"]["mean"] <= pair["win_rate"]["high"] <= 1.0
    assert found["strengths"].keys() == {str(tiny_model), str(other)}
    assert "Win rate" in (out / "evaluation.html").read_text()
    (file,) = (out / "pairs").iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [len(row["verdicts"]) for row in rows] == [2, 2, 2]
    written = file.stat().st_mtime_ns
    assert evaluate(*given, verb="compare").returncode == 0  # no engine is started
    assert file.stat().st_mtime_ns == written


def test_what_cannot_be_evaluated_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("")
    for arguments, said in (
        (("run.seed=1",), "found none"),
        ((tiny_model, "--limit", "1"), "--limit must be 2 or more"),
        ((run,), "without a trained model"),
        ((tmp_path / "nowhere",), "does not exist"),
    ):
        done = evaluate(*arguments, "--out", tmp_path / "out")
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
