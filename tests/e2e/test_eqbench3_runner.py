"""`perm-ray evaluate eqbench3` against servers of vLLM: with a runner of the official one's form, and with
the official one where there is a clone of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.program import environment
from tests.support.tiny_run import tiny_run

# As the official runner: asks both endpoints for more than they have, and writes what it got.
RUNNER = """
import argparse, json, os, requests
parser = argparse.ArgumentParser()
for name in ("test-model", "judge-model", "model-name", "run-id", "runs-file", "threads"):
    parser.add_argument(f"--{name}")
parser.add_argument("--no-elo", action="store_true")
parser.add_argument("--ignore-canonical", action="store_true")
given = parser.parse_args()

def ask(role, model, text):
    body = {"model": model, "max_tokens": 12000, "messages": [{"role": "user", "content": text}]}
    key = {"Authorization": f"Bearer {os.environ[role + '_API_KEY']}"}
    reply = requests.post(os.environ[role + "_API_URL"], json=body, headers=key, timeout=300)
    reply.raise_for_status()
    return reply.json()["choices"][0]["message"]["content"]

tasks = {}
for block in open("data/scenario_prompts.txt").read().split("######## ")[1:]:
    name = block.split()[0]
    answer = ask("TEST", given.test_model, block * (300 if name == "2" else 1))
    verdict = ask("JUDGE", given.judge_model, answer)
    turns = [{"role": "user", "content": block}, {"role": "assistant", "content": answer}]
    scores = {"warmth": 12.0} if name == "1" else None
    tasks[name] = {"conversation_history": turns, "rubric_scores": scores, "raw_rubric_judge_text": verdict}
run = {"model_name": given.model_name, "scenario_tasks": {"1": tasks}}
run["results"] = {"average_rubric_score": 12.0}
json.dump({"key": run}, open(given.runs_file, "w"))
"""
PROMPTS = """######## 1 | One
####### Prompt1
Hello.
######## 2 | Two
####### Prompt1
The rain.
######## 3 | Three
"""


def evaluate(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perm_ray.cli.main", "evaluate", "eqbench3", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=900, env=environment(), check=False
    )


def clone(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "eqbench3.py").write_text(RUNNER)
    (folder / "data/scenario_prompts.txt").write_text(PROMPTS)
    for name in ("rubric_scoring_criteria.txt", "rubric_scoring_criteria_analysis.txt"):
        (folder / "data" / name).write_text("warmth\n")
    return folder


@pytest.mark.timeout(600)  # two servers of vLLM start, which takes most of a minute
def test_a_runner_is_served_the_model_and_the_judge(tiny_model: Path, tmp_path: Path) -> None:
    config, out, runner = tmp_path / "tiny.yaml", tmp_path / "found", clone(tmp_path / "clone")
    config.write_text(tiny_run(tiny_model, tmp_path / "runs", mlflow=False))
    given = (tiny_model, "--config", config, "--eqbench-dir", runner, "--scenarios", "1,2", "--out", out)
    done = evaluate(*given)
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads((out / "evaluation.json").read_text())
    (model,) = document["models"]
    assert model["num_answers"] == 2
    assert (model["means"]["warmth"], model["means"]["parsed"], model["means"]["answered"]) == (
        12.0,
        0.5,
        1.0,
    )
    said = " ".join(document["remarks"])
    assert "60.0 of 100" in said
    assert "Not comparable to the public board" in said
    assert "the model: of 2 requests" in said
    assert "1 prompts lost their beginning" in said
    assert (runner / "data/scenario_prompts.txt").read_text() == PROMPTS

    again = evaluate(*given)  # no server is started
    assert again.returncode == 0
    assert "60.0 of 100" in again.stdout
    (copy,) = (out / "runner").iterdir()
    assert len((copy / "test_requests.jsonl").read_text().splitlines()) == 2


def test_a_runner_that_cannot_start_is_told(tiny_model: Path, tmp_path: Path) -> None:
    runner = clone(tmp_path / "clone")
    (runner / "eqbench3.py").write_text("import a_package_that_is_missing")
    done = evaluate(tiny_model, "--eqbench-dir", runner, "--out", tmp_path / "found")
    assert done.returncode == 2
    assert "install its requirements.txt" in done.stderr
    assert "a_package_that_is_missing" in done.stderr
    assert not (tmp_path / "found").exists()


@pytest.mark.skipif("EQBENCH_DIR" not in os.environ, reason="EQBENCH_DIR names no clone of EQ-bench/eqbench3")
@pytest.mark.timeout(1800)
def test_the_official_runner_finishes_on_three_scenarios(tmp_path: Path) -> None:
    python = os.environ.get("EQBENCH_PYTHON", sys.executable)
    done = evaluate(
        "builtin:supporter",
        *("--eqbench-dir", os.environ["EQBENCH_DIR"], "--python", python, "--scenarios", "1,4,401"),
        *("--out", tmp_path, "rollout.engine.max_model_len=4096", "models.judge.max_model_len=8192"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (model,) = json.loads((tmp_path / "evaluation.json").read_text())["models"]
    assert (model["num_answers"], model["means"]["answered"]) == (3, 1.0)
