"""A trainer that starts again from a checkpoint goes on exactly where that was.

Learners are made anew inside the processes of two groups, of one rank and of two. That other processes resume
as well is tested in `test_trainer.py` and, for whole runs, in `tests/e2e`.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from ray import cloudpickle
from safetensors.torch import load_file
from torch import Tensor

from perm_ray.config.training import LoraConfig, ObjectiveConfig, TrainerConfig
from perm_ray.files import FileDigest, file_digest
from perm_ray.trainer.actor import TrainerRank
from perm_ray.trainer.batching import TrainSequence, plan_step
from perm_ray.trainer.group import TrainerGroup
from perm_ray.trainer.step_metrics import StepSums, step_metrics
from tests.support.ranks import in_ranks
from tests.support.sequences import random_sequences
from tests.support.tiny_model import VOCABULARY

if TYPE_CHECKING:
    from perm_ray.trainer.learner import Learner

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

CONFIG = TrainerConfig(  # of learners; how their processes run is in conftest.py
    dtype="float32",
    micro_batch_tokens=128,
    lr=1e-3,
    warmup_ratio=0.4,  # the learning rate differs from step to step
    objective=ObjectiveConfig(kl_coef=0.05),
)
STEPS = 4
LORA = LoraConfig(rank=4, dropout=0.1)  # dropout draws from the generators that a resume restores


def batch(step: int) -> list[TrainSequence]:
    drawn = random_sequences(
        random.Random(step),
        6,
        per_prompt=3,
        vocabulary=range(VOCABULARY),
        prompt_tokens=(3, 20),
        completion_tokens=(5, 40),
        logprob=-6.0,
    )
    return list(drawn)


def all_steps(
    rank: TrainerRank, config: TrainerConfig, model_dir: Path, folder: Path
) -> tuple[list[StepSums], dict[str, FileDigest]]:
    """Runs in a rank: every step without a stop, with a checkpoint after the second, written meanwhile."""
    from perm_ray.trainer.learner import Learner

    learner = Learner(config, model_dir, rank.rank, STEPS)
    sums = [step_of(learner, config, rank.rank, step) for step in range(2)]
    learner.state.save(folder / "checkpoint")
    sums += [step_of(learner, config, rank.rank, step) for step in range(2, STEPS)]
    learner.export(folder / "whole")
    return sums, learner.state.written()


def the_rest(
    rank: TrainerRank, config: TrainerConfig, model_dir: Path, folder: Path, name: str
) -> list[StepSums]:
    """Runs in a rank: a new learner, the checkpoint, and the steps that are left."""
    from perm_ray.trainer.learner import Learner

    learner = Learner(config, model_dir, rank.rank, STEPS)
    learner.state.load(folder / "checkpoint")
    sums = [step_of(learner, config, rank.rank, step) for step in range(2, STEPS)]
    learner.export(folder / name)
    return sums


def step_of(learner: Learner, config: TrainerConfig, rank: int, step: int) -> StepSums:
    shares = plan_step(batch(step), config.micro_batch_tokens, config.num_ranks)
    return learner.step(step, shares[rank], lambda: False)


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
def test_k_steps_a_stop_and_the_rest_are_all_steps(
    groups: dict[int, TrainerGroup],
    tiny_model: Path,
    tmp_path: Path,
    changes: dict[str, object],
    other_ranks: int | None,
    rounding: tuple[float, float],
) -> None:
    """Bitwise with as many ranks; with another number, metrics and weights within `rounding`."""
    of_metrics, of_weights = rounding
    config = dataclasses.replace(CONFIG, **changes)

    def run(function: Callable[..., Any], config: TrainerConfig, *more: object) -> list[Any]:
        arguments = (config, tiny_model, tmp_path, *more)
        return in_ranks(groups[config.num_ranks], function, *arguments)

    reports = run(all_steps, config)
    metrics = merged([sums for sums, _ in reports])
    digests = {name: digest for _, part in reports for name, digest in part.items()}
    assert {name: file_digest(tmp_path / "checkpoint" / name) for name in digests} == digests

    assert merged(run(the_rest, config, "resumed")) == metrics[2:]
    expected, resumed = exported(tmp_path / "whole"), exported(tmp_path / "resumed")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)

    if other_ranks is not None:
        found = merged(run(the_rest, dataclasses.replace(config, num_ranks=other_ranks), "other"))
        for row, wanted in zip(found, metrics[2:], strict=True):
            assert row == pytest.approx(wanted, rel=1e-4 + 5 * of_metrics, abs=1e-6 + of_metrics)
        assert differences(expected, exported(tmp_path / "other")) <= of_weights
        assert not (tmp_path / "resharded").exists()  # what the ranks passed it on by


def merged(reports: Sequence[Sequence[StepSums]]) -> list[dict[str, float]]:
    """Each step's metrics, from every rank's sums."""
    return [step_metrics(ranks) for ranks in zip(*reports, strict=True)]


def exported(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")
