"""What a run leaves behind when it stops on a batch, and the limits that it stops at."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from perm_ray.config.training import LimitsConfig
from perm_ray.errors import CheckpointError, ConfigError
from perm_ray.runs.directory import RunDirectory
from perm_ray.runs.replay import FailedStep
from perm_ray.trainer.step_limits import exceeded
from tests.support.sequences import one_turn

SEQUENCES = (
    one_turn((1, 2), (3, 4, 5), (-0.1, -1 / 3, -math.inf), math.nan),
    one_turn((6,), (7,), (-1e-300,), 0.1 + 0.2),
)


def test_a_failed_step_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    file = RunDirectory(tmp_path).failed_step_file(12)
    FailedStep(12, "a loss", "step_000010", SEQUENCES).write(file)
    assert file.name == "failed_step_000012.json"
    again = FailedStep.read(file)
    assert (again.step, again.reason, again.checkpoint) == (12, "a loss", "step_000010")
    assert again.sequences[1] == SEQUENCES[1]
    assert again.sequences[0].logprobs == SEQUENCES[0].logprobs
    assert math.isnan(again.sequences[0].advantage)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"step": 1, "reason": "", "checkpoint": null}'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "failed.json"
    with pytest.raises(CheckpointError, match="expects the file of a failed step, found none"):
        FailedStep.read(file)
    file.write_text(content)
    with pytest.raises(CheckpointError, match="is not the file of a failed step"):
        FailedStep.read(file)


def test_a_sequence_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "failed.json"
    FailedStep(1, "", None, SEQUENCES).write(file)
    row = json.loads(file.read_text())
    row["sequences"][0]["token_ids"] = []
    file.write_text(json.dumps(row))
    with pytest.raises(CheckpointError, match="A training sequence needs"):
        FailedStep.read(file)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"policy/grad_norm": 10.0, "policy/kl": 0.5}, []),
        ({}, []),
        ({"policy/grad_norm": 10.1}, ["policy/grad_norm is 10.1, over trainer.limits.grad_norm of 10"]),
        (
            {"policy/logprob_diff_mean": 0.2},
            ["policy/logprob_diff_mean is 0.2, over trainer.limits.logprob_diff of 0.1"],
        ),
        ({"policy/kl": math.nan}, ["policy/kl is nan, over trainer.limits.kl of 0.5"]),
    ],
)
def test_a_step_past_a_limit_is_told(metrics: dict[str, float], said: list[str]) -> None:
    assert exceeded(metrics, LimitsConfig(grad_norm=10, kl=0.5, logprob_diff=0.1)) == said
    assert exceeded(metrics, LimitsConfig()) == []


@pytest.mark.parametrize("wrong", [{"kl": 0.0}, {"grad_norm": -1.0}, {"action": "panic"}])
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.limits"):
        LimitsConfig(**wrong)  # pyright: ignore[reportArgumentType]
