"""Who rewards and who grades: both are told, and a warning when they part."""

from __future__ import annotations

import pytest

from perm_ray.config.load import load_config
from perm_ray.errors import ConfigError
from perm_ray.evaluation.heldout import Evaluation, HeldoutResult, compare_evaluations

SCENARIOS = [f"s-{n}" for n in range(12)]


def result(*rewards: float) -> HeldoutResult:
    values = [rewards[n % len(rewards)] for n in range(len(SCENARIOS))]
    return HeldoutResult(
        {"reward/mean": sum(values) / len(values)}, dict(zip(SCENARIOS, values, strict=True))
    )


def test_both_panels_are_compared_and_agreement_needs_no_warning() -> None:
    before, after = Evaluation(result(0.1, 0.2), result(0.3)), Evaluation(result(0.4, 0.5), result(0.5))
    report = compare_evaluations(before, after, seed=1)
    assert report["difference"]["mean"] == pytest.approx(0.3)  # pyright: ignore[reportIndexIssue]
    assert report["training_judges"]["difference"]["mean"] == pytest.approx(0.2)  # pyright: ignore[reportIndexIssue]
    assert not {"warning", "note"} & report.keys()


def test_a_rise_that_an_independent_judge_does_not_see_is_warned_of() -> None:
    before, after = Evaluation(result(0.4), result(0.1)), Evaluation(result(0.3), result(0.5))
    warning = str(compare_evaluations(before, after, seed=1)["warning"])
    assert "rose by 0.400" in warning
    assert "fell by 0.100" in warning
    assert "over-optimisation" in warning


def test_a_judge_that_grades_itself_is_told_of() -> None:
    report = compare_evaluations(Evaluation(result(0.1)), Evaluation(result(0.2)), seed=1)
    assert "same judges" in str(report["note"])
    assert "training_judges" not in report


def test_an_evaluation_survives_a_checkpoint() -> None:
    for evaluation in (Evaluation(result(0.1), result(0.2)), Evaluation(result(0.1))):
        assert Evaluation.of_state(evaluation.as_state()) == evaluation


def test_the_grading_model_is_started_for_the_evaluation_alone() -> None:
    values = {"models": {"second": {}}, "evaluation": {"judge_model": "second"}}
    config = load_config(values)
    assert list(config.judge_engines) == ["judge", "second"]
    assert {pool.model for pool in config.grading_pools.values()} == {"second"}
    assert {pool.model for pool in config.judges.pools.values()} == {"judge"}
    assert list(load_config(values, ["evaluation.num_scenarios=0"]).judge_engines) == ["judge"]
    with pytest.raises(ConfigError, match=r"evaluation\.judge_model must be null or one of models \(judge\)"):
        load_config({"evaluation": {"judge_model": "second"}})


def test_a_grader_without_log_probabilities_cannot_grade_expectations() -> None:
    far = {"base_url": "http://127.0.0.1:1/v1", "model": "x"}
    pools = {"expression": {"scoring": {"mode": "expected"}}}
    values = {"models": {"far": far}, "judges": {"pools": pools}, "evaluation": {"judge_model": "far"}}
    with pytest.raises(ConfigError, match=r"evaluation\.judge_model must be a model that gives log-prob"):
        load_config(values)
