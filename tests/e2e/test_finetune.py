"""`perm-ray finetune` and `judge train` as a person runs them: killed and resumed, and never killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.program import environment
from tests.support.tiny_model import write_tiny_model
from tests.support.tiny_run import tiny_run

# 12 demonstrations, or 24 ratings of 12 replies: 4 an update, twice.
STEPS = {"finetune": 6, "judge train": 12}


def rows(folder: Path) -> Path:
    """Twelve replies to six scenarios, one of them held out, with ratings and with an analysis."""
    file = folder / "rows.jsonl"
    lines = [
        {
            "persona": f"Ana, {number}",
            "scenario": "She was passed over.",
            "query": "I should be happy.",
            "analysis": "She feels torn.",
            "response": reply,
            "labels": {"expression": {"ana": grade}, "reception": {"ana": grade}},
            "scale": {"expression": [1, 5], "reception": [1, 5]},
        }
        for number in range(7)
        for reply, grade in (("You can be both.", 5), ("At least you have work.", 1))
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def command(verb: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "perm_ray.cli.main", *verb.split(), *map(str, arguments)]


def finish(arguments: list[str]) -> str:
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=400, env=environment(), check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.timeout(900)
@pytest.mark.parametrize("verb", ["finetune", "judge train"])
def test_killed_and_resumed_equals_never_killed(verb: str, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_run(model, tmp_path / "runs", mlflow=False))
    arguments = [
        *("--data", rows(tmp_path), "--config", config, "finetune.epochs=2", "finetune.batch_size=4"),
        *("finetune.max_tokens=4000", "checkpoint.every=2", "trainer.lr=0.01"),
        *("judges.pools.resonation=null", "judges.pools.bystander=null"),
    ]
    printed = finish(command(verb, *arguments, "run.name=whole"))
    whole = tmp_path / "runs" / "whole"
    losses = [
        json.loads(line)["finetune/loss"] for line in (whole / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(losses) == STEPS[verb]
    assert losses[-1] < losses[0]
    evaluation = json.loads((whole / "summary.json").read_text())["evaluation"]
    assert evaluation["after"]["loss"] < evaluation["before"]["loss"]
    if verb == "judge train":
        assert "Judging 2 held-out replies by the model after training." in printed
        assert (whole / "judge_report.json").is_file()

    killed = tmp_path / "runs" / "killed"
    process = subprocess.Popen(
        command(verb, *arguments, "run.name=killed"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    deadline = time.monotonic() + 300
    while not (killed / "checkpoints" / "latest").is_file():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finish(command(verb, "--resume", killed))
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (whole, killed)]
    assert weights[0] == weights[1]
