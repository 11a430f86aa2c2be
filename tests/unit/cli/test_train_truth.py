"""`evaluation.truth`: a finished run is asked, before and after; a whole one was, once (it takes minutes)."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from perm_ray.cli import evaluate
from perm_ray.cli.train import train_plan
from perm_ray.config.load import load_config
from perm_ray.runs import start
from perm_ray.runs.directory import RunDirectory
from perm_ray.runs.run_plan import RunPlan, plan_run


@pytest.mark.parametrize(("wanted", "mlflow"), [(True, True), (True, False), (False, True)])
def test_a_finished_run_is_asked_when_that_is_wanted(
    wanted: bool, mlflow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"evaluation.truth={str(wanted).lower()}", f"tracking.mlflow={str(mlflow).lower()}"]
    asked: list[argparse.Namespace] = []

    def trained(*_: object) -> RunDirectory:
        return RunDirectory(tmp_path / "run")

    def truth(options: argparse.Namespace) -> int:
        asked.append(options)
        return 0

    monkeypatch.setattr(start, "train_plan", trained)
    monkeypatch.setattr(evaluate, "truth", truth)
    plan: RunPlan = plan_run(load_config("local", overrides))
    assert train_plan(plan, None) == 0
    assert len(asked) == wanted
    for options in asked:
        assert options.arguments == [str(tmp_path / "run")]
        assert options.out == tmp_path / "run" / "truth"
        assert options.config == tmp_path / "run" / "config.yaml"
        assert options.mlflow == mlflow
