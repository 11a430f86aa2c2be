"""A run goes on as the same experiment, or is refused with what differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perm_ray.cli.train import train_plan
from perm_ray.config.engines import EndpointModel, EngineModel
from perm_ray.config.load import load_config
from perm_ray.config.schema import Config
from perm_ray.config.training import TrainerConfig
from perm_ray.errors import CheckpointError
from perm_ray.files import fingerprint
from perm_ray.runs.checkpoint import Checkpoints
from perm_ray.runs.run_plan import RunPlan, plan_run
from perm_ray.runs.run_state import RESUME_MAY_DIFFER, RunState, check_agrees, numeric_warnings


def state(*overrides: str, **contents: str) -> RunState:
    config = load_config(None, ["trainer.dtype=bfloat16", *overrides])
    return RunState.new({"position": 0}, {"set of training scenarios": "d" * 64, **contents}, config)


def test_a_new_run_has_no_steps() -> None:
    new = RunState.new({"position": 0}, {}, Config())
    assert (new.step, new.sampler, new.mlflow_run_id, new.before) == (0, {"position": 0}, None, {})


@pytest.mark.parametrize(
    "override",
    [
        "policy.model=org/other",
        "run.seed=7",
        "run.deterministic=true",
        "prompt.prefix=hello",
        "rollout.prompts_per_step=4",
        "rollout.temperature=0.7",
        "models.judge.model=org/judge",
        "judges.pools.reception.scoring.min_mass=0.3",
        "rewards.combine=mean",
        "rewards.weights={reception: 2.0}",
        "trainer.lr=1e-4",
        "trainer.weight_decay=0.1",
        "trainer.zero_stage=3",
        "trainer.dtype=float32",
        "evaluation.num_scenarios=4",
    ],
)
def test_another_experiment_is_refused_with_what_was_and_what_is(override: str) -> None:
    key, _, value = override.partition("=")
    with pytest.raises(CheckpointError, match="made with something else") as caught:
        check_agrees(state(), state(override))
    assert f"({key}" in str(caught.value)
    assert " then, " in str(caught.value)
    if not value.startswith("{"):
        assert f"{_as_read(value)} now)" in str(caught.value)


def _as_read(value: str) -> str:
    return {"true": "True", "1e-4": "0.0001"}.get(value, value)


def test_every_difference_is_named() -> None:
    with pytest.raises(CheckpointError) as caught:
        check_agrees(state(), state("run.seed=7", **{"rubric of reception": "e" * 64}))
    assert "rubric of reception: absent then, eeeeeeeeeeee now" in str(caught.value)
    assert "run.seed: 42 then, 7 now" in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "run.steps=200",
        "run.dir=elsewhere",
        "data.train=moved.jsonl",
        "judges.pools.reception.rubric=moved.md",
        "judges.pools.reception.timeout_s=5",
        "rollout.engine.replicas=2",
        "models.judge.kv_cache_gb=2",
        "trainer.num_ranks=2",
        "trainer.step_timeout_s=7",
        "tracking.mlflow=false",
        "checkpoint.every=1",
        "evaluation.every=3",
    ],
)
def test_where_and_how_fast_a_run_runs_may_change(override: str) -> None:
    check_agrees(state(), state(override))


def test_a_judge_that_is_taken_away_is_a_difference(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("judges: {pools: {reception: null}}\n")
    other = RunState.new({}, {}, load_config(file))
    with pytest.raises(CheckpointError, match=r"pools\.reception\.model: judge then, absent now"):
        check_agrees(RunState.new({}, {}, Config()), other)


def test_every_pattern_of_what_may_change_fits_a_key() -> None:
    """A key that is renamed must be renamed here too."""
    import fnmatch

    far = EndpointModel(base_url="http://127.0.0.1:1/v1", model="m")  # there is none by default
    trainer = TrainerConfig(resources={"trainer": 1.0})  # nor any of the cluster's own
    config = Config(models={"far": far, "judge": EngineModel()}, trainer=trainer)
    keys = _keys(config.as_dict(), "")
    unused = [p for p in RESUME_MAY_DIFFER if not any(fnmatch.fnmatchcase(key, p) for key in keys)]
    assert unused == []


def _keys(tree: Any, prefix: str) -> list[str]:
    if not isinstance(tree, dict):
        return [prefix.removesuffix(".")]
    return [key for name, entry in tree.items() for key in _keys(entry, f"{prefix}{name}.")]


def test_other_ranks_and_packages_are_told_of() -> None:
    then, now = state(), state("trainer.num_ranks=2")
    assert numeric_warnings(then, then) == []
    (note,) = numeric_warnings(then, now)
    assert note == "trainer.num_ranks is 2, 1 then"


def test_what_paths_lead_to_is_compared_by_content(tmp_path: Path) -> None:
    scenario = '{"persona": "Ana", "scenario": "Her cat is gone.", "dialogue": ["%s"]}\n'
    data = tmp_path / "data.jsonl"
    data.write_text("".join(scenario % f"It is day {n}." for n in range(8)))
    overrides = [f"data.train={data}", "evaluation.num_scenarios=0"]
    before = plan_run(load_config(None, overrides)).contents()
    assert {"rubric of reception", "set of training scenarios", "prompt template"} <= before.keys()
    assert plan_run(load_config(None, overrides)).contents() == before
    data.write_text(data.read_text().replace("day 7", "day 8"))
    after = plan_run(load_config(None, overrides)).contents()
    assert [name for name in before if before[name] != after[name]] == ["set of training scenarios"]


def test_a_fingerprint_tells_models_of_equal_shape_apart(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(5_000_000))
    (tmp_path / "config.json").write_text("{}")
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    weights.write_bytes(b"\1" * 5_000_000)  # as training does: no number stays what it was
    assert fingerprint(tmp_path) != first


# ---- at the command line, before anything is started ------------------------------------------


def plan_of(run: Path, *overrides: str) -> RunPlan:
    return plan_run(load_config(None, [f"run.dir={run.parent}", f"run.name={run.name}", *overrides]))


def with_checkpoints(run: Path, *steps: int) -> Checkpoints:
    """A run that stopped after the last of `steps`, as far as a resume looks before it starts anything."""
    plan = plan_of(run)
    new = RunState.new(plan.new_sampler().state(), plan.contents(), plan.config)
    checkpoints = Checkpoints(run / "checkpoints", plan.config.checkpoint)
    for step in steps:
        checkpoints.save(replace(new, step=step), lambda _: dict)
    checkpoints.wait()
    return checkpoints


def test_a_resume_as_another_experiment_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with_checkpoints(tmp_path / "run", 2)
    with pytest.raises(CheckpointError, match=r"run\.seed: 42 then, 7 now"):
        train_plan(plan_of(tmp_path / "run", "run.seed=7"), resume=tmp_path / "run")


def test_a_resume_from_a_damaged_checkpoint_names_the_one_to_resume_from(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with_checkpoints(run, 2, 4)
    state_file = run / "checkpoints" / "step_000004" / "state.json"
    state_file.write_text(state_file.read_text().replace('"step": 4', '"step": 5'))
    with pytest.raises(CheckpointError, match=r"content of state\.json is not what was written") as caught:
        train_plan(plan_of(run), resume=run)
    before = run / "checkpoints" / "step_000002"
    assert f"--resume {before}" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"run\.seed: 42 then, 7 now"):  # which is read
        train_plan(plan_of(run, "run.seed=7"), resume=before)


def test_a_finished_run_has_nothing_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with_checkpoints(run, 100)
    (run / "summary.json").write_text('{"status": "FINISHED"}')
    assert train_plan(plan_of(run), resume=run) == 0
    assert "is finished: 100 of 100 steps are done, nothing to resume" in capsys.readouterr().out
