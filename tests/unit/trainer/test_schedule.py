"""Learning rates by hand: the rise, the falls, and that no step is wasted."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from perm_ray.config.training import LoraConfig, ObjectiveConfig, TrainerConfig
from perm_ray.errors import ConfigError
from perm_ray.trainer.schedule import lr_factor


def factors(total_steps: int, **changes: object) -> list[float]:
    factor = lr_factor(dataclasses.replace(TrainerConfig(), **changes), total_steps)
    return [round(factor(step), 6) for step in range(total_steps)]


def test_a_constant_rate_after_its_rise() -> None:
    assert factors(5, warmup_ratio=0.4) == [0.5, 1, 1, 1, 1]
    assert factors(4, warmup_ratio=0.0) == [1, 1, 1, 1]
    assert factors(3, warmup_ratio=1.0) == [0.333333, 0.666667, 1]
    assert factors(5, warmup_steps=4) == [0.25, 0.5, 0.75, 1, 1]  # steps win over the ratio
    assert factors(3, warmup_steps=0) == [1, 1, 1]
    assert factors(10, warmup_ratio=0.3)[:3] == [0.333333, 0.666667, 1]  # 0.3 * 10 is not quite 3


def test_a_linear_fall() -> None:
    # rises over 2 steps, is 1 at step 1, and would be at the minimum at step 6
    assert factors(6, schedule="linear", warmup_steps=2) == [0.5, 1, 0.8, 0.6, 0.4, 0.2]
    assert factors(6, schedule="linear", warmup_steps=2, min_lr_ratio=0.5) == [0.5, 1, 0.9, 0.8, 0.7, 0.6]


def test_a_cosine_fall() -> None:
    # half a cosine over 4 steps: (1 + cos(pi k / 4)) / 2
    assert factors(4, schedule="cosine", warmup_steps=1) == [1, 0.853553, 0.5, 0.146447]
    assert factors(4, schedule="cosine", warmup_steps=1, min_lr_ratio=0.2)[2] == 0.6


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_run_that_is_all_rise_or_goes_on_past_its_end(schedule: Any) -> None:
    factor = lr_factor(TrainerConfig(schedule=schedule, warmup_steps=9, min_lr_ratio=0.1), 3)
    assert [factor(step) for step in range(3)] == [1 / 9, 2 / 9, 3 / 9]
    factor = lr_factor(TrainerConfig(schedule=schedule, warmup_steps=0, min_lr_ratio=0.1), 3)
    assert factor(100) == pytest.approx(1.0 if schedule == "constant" else 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "step"}, "trainer.schedule must be one of constant, linear, cosine"),
        ({"min_lr_ratio": 1.5}, "trainer.min_lr_ratio"),
        ({"warmup_steps": -1}, "trainer.warmup_steps"),
        ({"offload_optimizer": True}, "false without trainer.num_gpus"),
        ({"offload_reference": True}, "false without trainer.num_gpus"),
        ({"offload_optimizer": True, "num_gpus": 1.0, "zero_stage": 0, "dtype": "float32"}, "1, 2 or 3"),
    ],
)
def test_what_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TrainerConfig(), **changes)


def test_what_an_adapter_may_not_be() -> None:
    wrong: list[dict[str, Any]] = [{"rank": -1}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}]
    for changes in wrong:
        with pytest.raises(ConfigError, match=f"trainer.lora.{next(iter(changes))}"):
            LoraConfig(**changes)


def test_warm_up_is_in_steps_of_the_run_whatever_a_step_updates() -> None:
    config = TrainerConfig(warmup_steps=2, objective=ObjectiveConfig(epochs=2, minibatches=3))
    factor = lr_factor(config, 60)
    assert [factor(0), factor(5), factor(10), factor(11)] == pytest.approx([1 / 12, 0.5, 11 / 12, 1.0])
