"""The end of a run: the numbers, and the table for people."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from perm_ray.tracking.summary import duration, mlflow_command, print_summary, summarise

ROWS = [
    {"step": 1, "reward/mean": 0.2, "judge/resonation/mean": 2.0, "format/valid": 0.5},
    {"step": 2, "judge/resonation/mean": 3.0, "format/valid": 0.75},
    {"step": 3, "reward/mean": 0.4, "judge/resonation/mean": 4.0, "format/valid": 1.0, "loss": -0.1},
]
EVALUATION = {
    "before": {"reward/mean": 0.25, "judge/reception/mean": 2.5},
    "after": {"reward/mean": 0.5, "judge/reception/mean": 3.5},
    "difference": {"mean": 0.25, "low": 0.125, "high": 0.375},
}


def printed(summary: dict[str, object], width: int = 100) -> str:
    out = StringIO()
    print_summary(summary, Console(file=out, width=width))
    return out.getvalue()


def test_first_last_and_mean_of_the_steps_that_have_it() -> None:
    summary = summarise(ROWS, "FINISHED", 61.0, {"evaluation": EVALUATION})
    assert (summary["status"], summary["steps"], summary["wall_time_s"]) == ("FINISHED", 3, 61.0)
    assert summary["evaluation"] == EVALUATION
    metrics = summary["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["reward/mean"] == pytest.approx({"first": 0.2, "last": 0.4, "mean": 0.3})
    assert metrics["loss"] == {"first": -0.1, "last": -0.1, "mean": -0.1}
    assert "step" not in metrics


def test_the_table() -> None:
    extra = {
        "evaluation": EVALUATION,
        "run_directory": "/runs/night",
        "mlflow_uri": "sqlite:////runs/night/mlflow.db",
    }
    text = printed(summarise(ROWS, "FINISHED", 3723.0, extra))
    assert "FINISHED: 3 steps in 1h02m" in text
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert [word for word in rows["judge/resonation/mean"].split() if word != "│"][1:] == [
        "2.000",
        "4.000",
        "+2.000",
    ]
    assert "0.250" in text
    assert "+0.125 .. +0.375" in text
    assert "held-out scenarios" in text


def test_paths_are_not_broken_by_a_narrow_terminal() -> None:
    extra = {
        "run_directory": "/somewhere/long/runs/night",
        "mlflow_uri": "sqlite:////somewhere/long/night/mlflow.db",
    }
    lines = printed(summarise(ROWS, "KILLED", 1.0, extra), width=30).splitlines()
    assert "Files:  /somewhere/long/runs/night" in lines
    expected = "mlflow ui --backend-store-uri sqlite:////somewhere/long/night/mlflow.db --host 127.0.0.1"
    assert f"MLflow: {expected}" in lines


def test_a_run_without_a_step_has_a_summary() -> None:
    text = printed(summarise([], "FAILED", 2.0, {}))
    assert "FAILED: 0 steps in 2s" in text
    assert "MLflow" not in text


def test_how_to_look_at_a_tracking_uri() -> None:
    assert mlflow_command("https://me:pw@host/mlflow") == "https://<redacted>@host/mlflow"
    assert mlflow_command("sqlite:////a b/m.db").startswith(
        "mlflow ui --backend-store-uri 'sqlite:////a b/m.db'"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (42, "42s"), (185, "3m05s"), (3720, "1h02m"), (float("inf"), "0s")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
