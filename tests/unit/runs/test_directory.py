"""The run directory: what is written, and what a resume finds after a kill."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from perm_ray.config.judges import AmbiguityConfig
from perm_ray.config.schema import RunConfig
from perm_ray.errors import CheckpointError, ConfigError, DataError
from perm_ray.files import write_json_atomic, write_text_atomic
from perm_ray.runs.directory import BestPolicy, RunDirectory, run_path
from perm_ray.tracking.ambiguous import AmbiguityRule
from perm_ray.tracking.mlflow_client import TrackedRun
from perm_ray.types import (
    Message,
    Prompt,
    Rollout,
    RolloutGroup,
    Scenario,
    Sections,
    Turn,
)
from tests.support.fakes import fake_completion

RULE = AmbiguityRule(AmbiguityConfig(), {})


def group(text: str) -> RolloutGroup:
    prompt = Prompt(Scenario("s", "p", "t", (Turn("seeker", "q"),)), (Message("user", "q"),), "", (1,))
    completion = fake_completion("s", 0, text, (1, 2))
    return RolloutGroup(prompt, (Rollout(completion, Sections(None, None), {}, None, "failed"),), (0.0,))


def test_run_path() -> None:
    now = datetime(2026, 1, 31, 23, 5, 9)
    assert run_path(RunConfig(name="night", dir="/runs"), now) == Path("/runs/night")
    assert run_path(RunConfig(dir="/runs"), now) == Path("/runs/perm-20260131-230509")
    assert run_path(RunConfig(), now).is_absolute()


def test_a_new_run(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "runs" / "night", "run: {}\n")
    run.append_metrics(1, {"reward/mean": 0.5, "loss": math.nan, "gnorm": np.float64(1.5)})
    run.append_metrics(2, {"reward/mean": 0.75})
    run.write_samples(1, [group("bien sûr\u2028ok \ud83d")], RULE)  # a line separator, half a surrogate pair
    run.write_summary({"status": "FINISHED", "wall_time_s": math.inf, "files": run.path})

    assert run.name == "night"
    assert run.config_file.read_text() == "run: {}\n"
    lines = run.metrics_file.read_text().splitlines()
    first = json.loads(lines[0])
    assert abs(first.pop("time_ms") / 1000 - time.time()) < 60
    assert first == {"step": 1, "reward/mean": 0.5, "loss": None, "gnorm": 1.5}
    assert run.read_metrics() == [
        {"step": 1, "reward/mean": 0.5, "gnorm": 1.5},
        {"step": 2, "reward/mean": 0.75},
    ]
    samples = (run.samples / "step_000001.jsonl").read_text(encoding="utf-8")
    assert "bien sûr" in samples
    assert json.loads(samples)["completion"] == "bien sûr\u2028ok ?"
    summary = {"status": "FINISHED", "wall_time_s": None, "files": str(run.path)}
    assert json.loads(run.summary_file.read_text()) == summary
    assert (run.checkpoints, run.policy) == (run.path / "checkpoints", run.path / "policy")


def test_a_directory_with_metrics_is_refused(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "night", "")
    RunDirectory.create(tmp_path / "night", "")  # it never got to a step: nothing to lose
    run.append_metrics(1, {})
    with pytest.raises(ConfigError, match=r"choose another run.name, or go on with it with --resume"):
        RunDirectory.create(tmp_path / "night", "")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        RunDirectory.create(tmp_path / "file", "")


def test_resume_drops_later_steps_and_a_line_cut_short(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "night", "a: 1\n")
    for step in (1, 2, 3):
        run.append_metrics(step, {"reward/mean": step / 10})
        run.write_samples(step, [group("text")], RULE)
        run.write_heldout(step - 1, [group("text")], RULE)
    with run.metrics_file.open("a") as file:
        file.write('{"step": 4, "rew')

    resumed = RunDirectory.resume(tmp_path / "night", "a: 2\n", step=2)
    resumed.append_metrics(3, {"reward/mean": 0.9})
    assert resumed.config_file.read_text() == "a: 2\n"
    assert [(row["step"], row["reward/mean"]) for row in resumed.read_metrics()] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.9),
    ]
    assert resumed.metrics_file.read_text().startswith('{"step": 1,')
    names = sorted(path.name for path in resumed.samples.iterdir())
    kept = ["heldout_000000", "heldout_000001", "heldout_000002", "step_000001", "step_000002"]
    assert names == [f"{name}.jsonl" for name in kept]


def test_resume_keeps_the_best_policy_of_the_steps_that_stay(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "night", "a: 1\n")
    assert run.best() is None
    run.best_policy.mkdir()
    adapter = run.path / "policy_best_adapter"
    adapter.mkdir()
    run.write_best(BestPolicy(2, {"after": {"reward/mean": 0.5}}))
    assert RunDirectory.resume(run.path, "", step=2).best() == BestPolicy(2, {"after": {"reward/mean": 0.5}})
    assert RunDirectory.resume(run.path, "", step=1).best() is None
    assert not run.best_policy.exists()
    assert not adapter.exists()


def test_resume_before_the_first_metrics(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "night", "")
    assert RunDirectory.resume(tmp_path / "night", "", step=0).read_metrics() == []
    with pytest.raises(CheckpointError, match="no run at"):
        RunDirectory.resume(tmp_path / "other", "", step=0)


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "night", "")
    run.metrics_file.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(DataError, match=r"metrics.jsonl line 2 is not a JSON object with a step"):
        run.read_metrics()


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json_atomic(path, {"steps": 1})
    with pytest.raises(TypeError):
        write_json_atomic(path, {"steps": object()})
    assert json.loads(path.read_text()) == {"steps": 1}
    blocked = tmp_path / "folder"
    blocked.mkdir()
    with pytest.raises(OSError, match="folder"):
        write_text_atomic(blocked, "text")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "summary.json"]


def test_how_far_mlflow_is_belongs_to_one_run_and_goes_back_with_it(tmp_path: Path) -> None:
    path = tmp_path / "night"
    RunDirectory.create(path, "run: {}\n")
    for step in (1, 2, 3):
        RunDirectory(path).append_metrics(step, {"loss": 0.5})
    tracked = TrackedRun("7", "1", "http://host", {"metrics.jsonl": 3}, "KILLED")
    tracked.write(path)
    RunDirectory.resume(path, "run: {}\n", 2)
    assert TrackedRun.read(path) == replace(tracked, sent={"metrics.jsonl": 2}, ended="")
    (path / "metrics.jsonl").unlink()  # one that got nowhere: another may be begun here
    RunDirectory.create(path, "run: {}\n")
    assert TrackedRun.read(path) is None
