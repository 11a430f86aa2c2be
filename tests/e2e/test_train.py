"""`perm-ray train` as a person runs it: a real model in a real loop, stopped, resumed and repeated."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from perm_ray.config.engines import BUILTIN_MODEL
from perm_ray.runs.directory import RunDirectory
from perm_ray.tracking.mlflow_sender import is_behind
from tests.support.program import environment
from tests.support.tiny_model import write_tiny_model
from tests.support.tiny_run import tiny_run

BUILTIN_PERSPECTIVES = ("resonation", "expression", "reception", "bystander")
METRICS = {
    *(f"reward/{name}" for name in ("mean", "std", "empathy", "bystander", "length")),
    *(f"judge/{p}/{name}" for p in BUILTIN_PERSPECTIVES for name in ("failed", "skipped")),
    *(f"policy/{name}" for name in ("loss", "kl", "entropy", "grad_norm", "clip_fraction", "lr")),
    *("policy/logprob_diff_mean", "policy/logprob_diff_max", "format/valid", "group/zero_variance"),
    *(f"rollout/{name}" for name in ("completions", "tokens", "tokens_per_s", "length_mean", "truncated")),
    *(f"sync/{name}" for name in ("version", "seconds", "bytes")),
    *(f"time/{name}_s" for name in ("generate", "judge", "train", "sync", "step")),
}
TIMES = ("time/", "rollout/tokens_per_s", "sync/seconds")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "perm_ray.cli.main", "train", *map(str, arguments)]


def train(*arguments: object) -> str:
    """Run to the end; returns what was printed."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=500, env=environment(), check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def samples(run: Path, step: int) -> list[dict[str, Any]]:
    lines = (run / "samples" / f"step_{step:06d}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def builtin_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two steps of the built-in model with the shipped local configuration, made smaller."""
    runs = tmp_path_factory.mktemp("runs")
    printed = train(
        *(f"run.dir={runs}", "run.name=builtin", "run.steps=2", "rollout.prompts_per_step=2"),
        *("rollout.max_completion_tokens=64", "evaluation.num_scenarios=2"),
        *("tracking.samples.every=2", "tracking.samples.count=3", "tracking.register_model=kind-policy"),
    )
    return runs / "builtin", printed


@pytest.mark.timeout(600)
def test_the_built_in_model_is_trained_by_four_judges(builtin_run: tuple[Path, str]) -> None:
    run, _ = builtin_run
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert set(row) >= METRICS
        assert row["sync/version"] == row["step"]
        assert row["policy/logprob_diff_mean"] < 0.1
        assert row["policy/grad_norm"] > 0
        assert row["rollout/completions"] == 8
        assert row["judge/resonation/failed"] == 0
        assert row["judge/resonation/mass"] > 0.5
        assert 1 <= row["judge/resonation/mean"] <= 5


def test_the_run_directory_holds_what_others_rely_on(builtin_run: tuple[Path, str]) -> None:
    run, printed = builtin_run
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "mlflow.db", "checkpoints/latest"):
        assert (run / name).is_file(), name
    assert (run / "checkpoints" / "step_000002").is_dir()
    rows = samples(run, 2)
    assert len(rows) == 8
    for row in rows:
        assert set(row["judgments"]) == set(BUILTIN_PERSPECTIVES)
        assert row["version"] == 1
        scores = [judgment["score"] for judgment in row["judgments"].values()]
        statuses = [judgment["status"] for judgment in row["judgments"].values()]
        assert [score is None for score in scores] == [status != "ok" for status in statuses]
        reward = row["reward"]
        assert reward["value"] == pytest.approx(reward["empathy"] + reward["bystander"] + reward["length"])
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("FINISHED", 2)
    assert set(summary["evaluation"]) == {"before", "after", "difference", "note"}
    assert "reward/mean" in printed
    assert f"sqlite:///{run}/mlflow.db" in printed
    assert "\x1b" not in printed  # no escape codes when the output is not a terminal


def test_the_reference_names_every_metric_and_every_file(builtin_run: tuple[Path, str]) -> None:
    run, _ = builtin_run
    reference = Path(__file__).parents[2] / "docs" / "reference"
    names = re.findall(r"^\| `([^`]+)` \|", (reference / "metrics.md").read_text(), re.MULTILINE)
    known = re.compile("|".join(map(_pattern_of, names)))
    found = {name for row in metrics(run) for name in row} - {"step", "time_ms"}
    assert [name for name in sorted(found) if not known.fullmatch(name)] == []
    listed = (reference / "run-directory.md").read_text()
    entries = {re.sub(r"_\d{6}", "", path.name) for path in (*run.iterdir(), *(run / "samples").iterdir())}
    assert [name for name in sorted(entries) if name.partition(".")[0] not in listed] == []


def _pattern_of(documented: str) -> str:
    """Return a regular expression for a row: `<p>` is any name, `{a,b}` a or b, `...` the rest."""
    text = re.escape(re.sub("<[a-z]+>", "\1", documented.replace("...", "\0")))
    text = re.sub(r"\\\{([^}]*)\\\}", lambda m: f"(?:{m[1].replace(',', '|')})", text)
    return text.replace("\0", ".*").replace("\1", "[^/]+")


def test_mlflow_has_the_run(builtin_run: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    run, _ = builtin_run
    client = MlflowClient(f"sqlite:///{run}/mlflow.db")
    experiment = client.get_experiment_by_name("perm_ray")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    run_id = tracked.info.run_id
    assert json.loads((run / "mlflow_run.json").read_text())["run_id"] == run_id
    assert [m.step for m in client.get_metric_history(run_id, "reward/mean")] == [1, 2]
    assert len(tracked.data.tags["data.digest"]) == 12
    names = {file.path for file in client.list_artifacts(run_id)}
    assert names >= {"config.yaml", "environment.json", "data.json", "samples"}
    assert not is_behind(run)


def test_rollouts_can_be_read_and_rated_in_mlflow(builtin_run: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    run, _ = builtin_run
    client = MlflowClient(f"sqlite:///{run}/mlflow.db")
    tracked = json.loads((run / "mlflow_run.json").read_text())
    found = client.search_traces(locations=[tracked["experiment_id"]], run_id=tracked["run_id"])
    assert [trace.info.tags["step"] for trace in found] == ["2"] * 3
    rows = {(row["scenario_id"], str(row["index"])): row for row in samples(run, 2)}
    for trace in found:
        row = rows[trace.info.tags["scenario_id"], trace.info.tags["index"]]
        spans = {span.name: span for span in trace.data.spans}
        assert spans["generate"].outputs["content"] == row["completion"]
        given = {entry.name: entry.feedback.value for entry in trace.info.assessments if entry.feedback}
        assert given == {name: judgment["score"] for name, judgment in row["judgments"].items()}


def test_the_policy_has_a_card_and_is_the_champion(builtin_run: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    run, printed = builtin_run
    after = json.loads((run / "summary.json").read_text())["evaluation"]["after"]["reward/mean"]
    assert (
        f"Model:  kind-policy version 1, champion (the first with a held-out reward: {after:.3f})" in printed
    )
    client = MlflowClient(f"sqlite:///{run}/mlflow.db")
    version = client.get_model_version_by_alias("kind-policy", "champion")
    assert float(version.tags["heldout_reward"]) == after
    card = (run / "policy" / "README.md").read_text()
    assert f"| {after:.3f} |" in card
    assert "## Limits" in card


def test_what_mlflow_missed_is_sent_when_a_finished_run_is_resumed(builtin_run: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    run, _ = builtin_run
    RunDirectory(run).append_metrics(2, {"missed": 0.5}, "heldout")
    assert is_behind(run)
    assert "nothing to resume" in train("--resume", run)
    assert not is_behind(run)
    run_id = json.loads((run / "mlflow_run.json").read_text())["run_id"]
    tracked = MlflowClient(f"sqlite:///{run}/mlflow.db").get_run(run_id)
    assert (tracked.info.status, tracked.data.metrics["missed"]) == ("FINISHED", 0.5)


def test_the_exported_policy_loads_in_transformers_and_has_changed(builtin_run: tuple[Path, str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from perm_ray.models.resolve import resolve_model

    run, _ = builtin_run
    trained = AutoModelForCausalLM.from_pretrained(run / "policy", dtype=torch.bfloat16)
    base = AutoModelForCausalLM.from_pretrained(resolve_model(BUILTIN_MODEL), dtype=torch.bfloat16)
    changed = [
        name
        for (name, ours), (_, theirs) in zip(trained.named_parameters(), base.named_parameters(), strict=True)
        if not torch.equal(ours, theirs)
    ]
    assert len(changed) > 100
    assert AutoTokenizer.from_pretrained(run / "policy").decode([1]) == "<|im_start|>"


# --- stopped, resumed, repeated ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    model = write_tiny_model(folder / "model")
    config = folder / "tiny.yaml"
    config.write_text(tiny_run(model, folder / "runs"))
    return config


@pytest.mark.timeout(600)
def test_stopped_and_resumed_equals_never_stopped(tiny_config: Path) -> None:
    """SIGTERM after step 2, resume, 4 steps in all: the same samples, rewards and weights, bit for bit."""
    runs = tiny_config.parent / "runs"
    evaluated = "evaluation.every=1"
    printed = train("--config", tiny_config, "run.name=whole", evaluated, "tracking.register_model=tiny")
    the_best_policy_is_kept(runs / "whole", printed)
    stopped = subprocess.Popen(
        command("--config", tiny_config, "run.name=stopped", evaluated),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    assert stopped.stdout is not None
    for line in stopped.stdout:
        if line.startswith("step 2/4"):
            break
    children = psutil.Process(stopped.pid).children(recursive=True)
    start = time.monotonic()
    stopped.send_signal(signal.SIGTERM)
    printed = stopped.stdout.read()
    assert stopped.wait(30) == 128 + signal.SIGTERM, printed
    assert time.monotonic() - start < 30
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert "perm-ray train --resume" in printed
    summary = json.loads((runs / "stopped" / "summary.json").read_text())
    assert summary["status"] == "KILLED"

    train("--resume", runs / "stopped")
    assert "nothing to resume" in train("--resume", runs / "stopped")
    whole, resumed = metrics(runs / "whole"), metrics(runs / "stopped")
    assert [comparable(row) for row in whole] == [comparable(row) for row in resumed]
    for step in range(1, 5):
        for ours, theirs in zip(samples(runs / "whole", step), samples(runs / "stopped", step), strict=True):
            assert ours["completion"] == theirs["completion"]
            assert ours["reward"] == theirs["reward"]
    weights = [(runs / name / "policy" / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


def the_best_policy_is_kept(run: Path, printed: str) -> None:
    """Beside the last, unless that is the best: which one it is hangs on the machine's rounding."""
    rewards = json.loads((run / "checkpoints" / "heldout.json").read_text())
    best_step = max(range(1, 5), key=lambda step: rewards[str(step)])
    assert "tiny version 1, champion (the first with a held-out reward" in printed
    assert (run / "policy_best").exists() == ("tiny version 2 (held-out reward" in printed) == (best_step < 4)
    if best_step == 4:
        return
    best = json.loads((run / "policy_best" / "heldout.json").read_text())
    assert best["step"] == best_step
    assert best["evaluation"]["after"]["reward/mean"] == pytest.approx(rewards[str(best_step)])
    weights = [(run / name / "model.safetensors").read_bytes() for name in ("policy", "policy_best")]
    assert weights[0] != weights[1]
    assert f"trained for {best_step} steps" in (run / "policy_best" / "README.md").read_text()


def comparable(row: dict[str, float]) -> dict[str, float]:
    """What a run repeats: all but how long things took."""
    took = ("_s", "time_ms", "/busy", "busy_together")
    return {
        name: value for name, value in row.items() if not name.startswith(TIMES) and not name.endswith(took)
    }


@pytest.mark.timeout(600)
def test_a_step_past_a_limit_stops_the_run_and_is_replayed_alone(tiny_config: Path) -> None:
    """With an adapter, sent alone: at the first step it adds nothing, so that the KL is 0; then it is not."""
    limits = "trainer.limits={kl: 1.0e-12, action: stop}"
    lora = ("trainer.lora.rank=4", "sync.adapter_only=true", "trainer.objective.kl_coef=0.01")
    smaller = ("evaluation.num_scenarios=0", "rollout.max_completion_tokens=8", "tracking.mlflow=false")
    done = subprocess.run(
        command("--config", tiny_config, "run.name=limited", "checkpoint.every=1", limits, *lora, *smaller),
        capture_output=True,
        text=True,
        timeout=500,
        env=environment(),
        check=False,
    )
    run = tiny_config.parent / "runs" / "limited"
    failed = run / "failed_step_000002.json"
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Step 2 went past a limit: policy/kl is" in done.stderr
    assert f"perm-ray train --replay {failed}" in done.stderr
    assert (run / "checkpoints" / "latest").read_text() == "step_000001\n"
    (first,) = metrics(run)
    assert first["policy/kl"] == 0.0
    assert first["policy/logprob_diff_mean"] < 0.01  # the engine has the merged adapter
    kl = float(done.stderr.partition("policy/kl is ")[2].partition(",")[0])

    printed = train("--replay", failed)
    assert "Weights of step 1, from the checkpoint step_000001." in printed
    assert "The run stopped because: Step 2 went past a limit" in printed
    (replayed,) = [line.split()[1] for line in printed.splitlines() if line.startswith("policy/kl")]
    assert float(replayed) == pytest.approx(kl, rel=1e-3)
