"""A trainer that is killed and started again goes on exactly where its last checkpoint was."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from perm_ray.config.training import LoraConfig, ObjectiveConfig, TrainerConfig
from perm_ray.files import file_digest
from perm_ray.testing.tiny_model import VOCABULARY
from perm_ray.trainer.batching import TrainSequence
from perm_ray.trainer.group import TrainerGroup

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

CONFIG = TrainerConfig(
    num_cpus=1,
    num_threads=1,
    dtype="float32",
    micro_batch_tokens=128,
    lr=1e-3,
    warmup_ratio=0.4,  # the learning rate differs from step to step
    objective=ObjectiveConfig(kl_coef=0.05),
    start_timeout_s=120,
    step_timeout_s=60,
    collective_timeout_s=30,
)
STEPS = 4
LORA = LoraConfig(rank=4, dropout=0.1)  # dropout draws from the generators that a resume restores
Start = Callable[..., TrainerGroup]


@pytest.fixture
def start(ray_cluster: None, tiny_model: Path) -> Iterator[Start]:
    """Starts a group with CONFIG and the given changes; shuts every group down at the end."""
    groups: list[TrainerGroup] = []

    def start_group(**changes: object) -> TrainerGroup:
        config = dataclasses.replace(CONFIG, **changes)
        group = TrainerGroup(config, tiny_model, seed=1, total_steps=STEPS)
        groups.append(group)
        group.start_async()
        group.wait_ready()
        return group

    yield start_group
    for group in groups:
        group.shutdown()


def batch(step: int) -> list[TrainSequence]:
    rng = random.Random(step)
    sequences: list[TrainSequence] = []
    prompt: tuple[int, ...] = ()
    for index in range(6):
        if index % 3 == 0:
            prompt = tuple(rng.choices(range(VOCABULARY), k=rng.randint(3, 20)))
        completion = tuple(rng.choices(range(VOCABULARY), k=rng.randint(5, 40)))
        sequences.append(TrainSequence(prompt, completion, (-6.0,) * len(completion), rng.gauss(0, 1)))
    return sequences


def weights(group: TrainerGroup, path: Path) -> dict[str, Tensor]:
    group.export(path)
    return load_file(path / "model.safetensors")


def differences(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


@pytest.mark.parametrize(
    ("changes", "other_ranks", "rounding"),
    [
        ({"zero_stage": 0}, None, (0.0, 0.0)),
        ({"zero_stage": 0, "lora": LORA}, None, (0.0, 0.0)),
        ({"zero_stage": 3, "num_ranks": 2, "weight_decay": 0.1}, 1, (1e-5, 1e-5)),
        ({"zero_stage": 3, "num_ranks": 2, "lora": LORA}, None, (0.0, 0.0)),
        # One step of bfloat16 at 1.0 is 8e-3.
        ({"zero_stage": 2, "dtype": "bfloat16"}, 2, (4e-3, 4e-3)),
        ({"zero_stage": 2, "dtype": "bfloat16", "lora": LORA}, None, (0.0, 0.0)),
    ],
    ids=["zero0", "zero0-lora", "zero3-2ranks", "zero3-2ranks-lora", "zero2-bfloat16", "zero2-bfloat16-lora"],
)
def test_k_steps_a_kill_and_the_rest_are_all_steps(
    start: Start,
    tmp_path: Path,
    changes: dict[str, object],
    other_ranks: int | None,
    rounding: tuple[float, float],
) -> None:
    """Bitwise with as many ranks; with another number, metrics and weights within `rounding`."""
    of_metrics, of_weights = rounding
    whole = start(**changes)
    metrics = [whole.train_step(step, batch(step)) for step in range(2)]
    written = whole.save(tmp_path / "checkpoint")
    metrics += [whole.train_step(step, batch(step)) for step in range(2, STEPS)]  # while it is written
    digests = written()
    expected = weights(whole, tmp_path / "whole")
    whole.shutdown()
    assert {name: file_digest(tmp_path / "checkpoint" / name) for name in digests} == digests

    resumed = start(**changes)
    resumed.load(tmp_path / "checkpoint")
    assert [resumed.train_step(step, batch(step)) for step in range(2, STEPS)] == metrics[2:]
    found = weights(resumed, tmp_path / "resumed")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    resumed.shutdown()

    if other_ranks is not None:
        resharded = start(**{**changes, "num_ranks": other_ranks})
        resharded.load(tmp_path / "checkpoint")
        for step in range(2, STEPS):
            report = resharded.train_step(step, batch(step))
            assert report == pytest.approx(metrics[step], rel=1e-4 + 5 * of_metrics, abs=1e-6 + of_metrics)
        difference = differences(expected, weights(resharded, tmp_path / "other"))
        assert difference <= of_weights
        assert not (tmp_path / "resharded").exists()  # what the ranks passed it on by
