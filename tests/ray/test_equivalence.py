"""One step is one step: ZeRO stage, ranks, micro-batches, checkpointing, LoRA and averages change no result.

Two groups, of one rank and of two, are started once; each row of the table is a learner of its own inside
their processes.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from ray import cloudpickle
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from perm_ray.config.training import LoraConfig, ObjectiveConfig, TrainerConfig
from perm_ray.errors import ModelError
from perm_ray.trainer.actor import TrainerRank
from perm_ray.trainer.batching import TrainSequence, plan_step
from perm_ray.trainer.group import TrainerGroup
from perm_ray.trainer.step_metrics import StepSums, step_metrics
from tests.support.ranks import in_ranks
from tests.support.sequences import random_sequences
from tests.support.tiny_model import VOCABULARY

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

CONFIG = TrainerConfig(  # of learners; how their processes run is in conftest.py
    dtype="float32",
    micro_batch_tokens=128,
    lr=1e-4,  # AdamW makes steps of this size of differences in gradients that are nearly zero
    weight_decay=0.1,
    warmup_ratio=0.0,
    max_grad_norm=0.5,
    objective=ObjectiveConfig(kl_coef=0.05),
)
LORA = LoraConfig(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "down_proj"))
STEPS = 3


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a row of the table left: each step's metrics, and the exported weights."""

    metrics: list[dict[str, float]]
    folder: Path

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "policy" / "model.safetensors")


def batches() -> list[list[TrainSequence]]:
    """Unequal lengths, three completions of a prompt; the last step is a single sequence, so that with two
    ranks one has nothing to do."""
    rng = random.Random(0)
    found = []
    for count in (9, 6, 1):
        drawn = random_sequences(
            rng,
            count,
            per_prompt=3,
            vocabulary=range(VOCABULARY),
            prompt_tokens=(3, 20),
            completion_tokens=(5, 60),
            logprob=-6.0,
        )
        found.append(list(drawn))
    return found


def train_row(rank: TrainerRank, config: TrainerConfig, model_dir: Path, folder: Path) -> list[StepSums]:
    """Runs in a rank: a learner with another configuration than the group's, from the first weights."""
    from perm_ray.trainer.learner import Learner

    learner = Learner(config, model_dir, rank.rank, STEPS)
    sums = []
    for step, batch in enumerate(batches()):
        shares = plan_step(batch, config.micro_batch_tokens, config.num_ranks)
        sums.append(learner.step(step, shares[rank.rank], lambda: False))
    learner.export(folder / "policy")
    return sums


@dataclasses.dataclass(frozen=True)
class Table:
    groups: dict[int, TrainerGroup]
    model_dir: Path
    folder: Path

    def row(self, name: str, **changes: object) -> Outcome:
        config = dataclasses.replace(CONFIG, **changes)
        folder = self.folder / name
        reports = in_ranks(self.groups[config.num_ranks], train_row, config, self.model_dir, folder)
        return Outcome([step_metrics(ranks) for ranks in zip(*reports, strict=True)], folder)


@pytest.fixture(scope="module")
def table(
    groups: dict[int, TrainerGroup], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Table:
    return Table(groups, tiny_model, tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def plain(table: Table) -> Outcome:
    return table.row("plain", zero_stage=0)


@pytest.fixture(scope="module")
def plain_lora(table: Table) -> Outcome:
    return table.row("lora", zero_stage=0, lr=3e-4, lora=LORA)


def same(row: Outcome, expected: Outcome) -> None:
    for found, wanted in zip(row.metrics, expected.metrics, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert largest_difference(row.weights, expected.weights) < 1e-5


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_every_stage_and_number_of_ranks(
    table: Table, plain: Outcome, tiny_model: Path, zero_stage: int, num_ranks: int
) -> None:
    same(table.row(f"z{zero_stage}r{num_ranks}", zero_stage=zero_stage, num_ranks=num_ranks), plain)
    start = load_file(tiny_model / "model.safetensors")
    assert largest_difference(plain.weights, start) > 1e-4  # it did learn


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing": False},
        {"micro_batch_tokens": 100_000},  # one micro-batch a step instead of several
        {"micro_batch_tokens": 1},  # one sequence in each
        {"share_prompts": False},
        {"share_prompts": False, "gradient_checkpointing": False, "micro_batch_tokens": 100_000},
    ],
    ids=str,
)
def test_how_the_step_is_computed(table: Table, plain: Outcome, changes: dict[str, object]) -> None:
    same(table.row(str(changes), **changes), plain)


@pytest.mark.parametrize(("zero_stage", "num_ranks"), [(1, 2), (2, 1), (2, 2), (3, 1), (3, 2)])
def test_lora_on_every_stage(table: Table, plain_lora: Outcome, zero_stage: int, num_ranks: int) -> None:
    changes = {"zero_stage": zero_stage, "num_ranks": num_ranks}
    row = table.row(f"lora-{changes}", lr=3e-4, lora=LORA, **changes)
    same(row, plain_lora)
    assert plain_lora.metrics[0]["policy/kl"] == pytest.approx(0.0, abs=1e-9)  # the adapter adds nothing yet
    assert plain_lora.metrics[2]["policy/kl"] > 1e-8  # the reference is the base model


def test_lora_trains_its_targets_alone_and_its_two_exports_agree(
    plain_lora: Outcome, tiny_model: Path
) -> None:
    base = load_file(tiny_model / "model.safetensors")
    merged = plain_lora.weights
    changed = {name for name, weight in merged.items() if not torch.equal(weight, base[name].float())}
    assert changed == {name for name in base if any(target in name for target in LORA.targets)}

    stock = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with_adapter = PeftModel.from_pretrained(stock, str(plain_lora.folder / "policy_adapter"))
    policy = AutoModelForCausalLM.from_pretrained(plain_lora.folder / "policy")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(with_adapter(ids).logits, policy(ids).logits, atol=1e-5, rtol=0)


def test_a_target_that_the_policy_lacks_is_refused(table: Table) -> None:
    def refused(rank: TrainerRank, config: TrainerConfig, model_dir: Path) -> str:
        from perm_ray.trainer.learner import Learner

        try:
            Learner(config, model_dir, rank.rank, STEPS)
        except ModelError as error:
            return str(error)
        return "nothing"

    for targets, message in ((("no_such",), "no_such"), (("embed_tokens",), "embed_tokens is Embedding")):
        config = dataclasses.replace(CONFIG, lora=LoraConfig(rank=2, targets=targets))
        (found,) = in_ranks(table.groups[1], refused, config, table.model_dir)
        assert "trainer.lora.targets must name linear layers" in found
        assert message in found


@pytest.mark.parametrize("lora", [LoraConfig(), LORA], ids=["full", "lora"])
def test_the_average_is_exported_and_survives_a_checkpoint(
    table: Table, plain: Outcome, plain_lora: Outcome, tiny_model: Path, lora: LoraConfig
) -> None:
    """decay 0.5 over three updates: w3/2 + w2/4 + w1/8 + w0/8; with a restart after the second."""

    def train_and_resume(rank: TrainerRank, config: TrainerConfig, model_dir: Path, folder: Path) -> None:
        from perm_ray.trainer.learner import Learner

        plans = [plan_step(batch, config.micro_batch_tokens, config.num_ranks) for batch in batches()]
        learner = Learner(config, model_dir, rank.rank, STEPS)
        for step, plan in enumerate(plans[:2]):
            learner.step(step, plan[rank.rank], lambda: False)
        learner.state.save(folder / "checkpoint")
        learner.state.written()
        again = Learner(config, model_dir, rank.rank, STEPS)
        again.state.load(folder / "checkpoint")
        again.step(2, plans[2][rank.rank], lambda: False)
        again.export(folder / "policy")

    def after_each_step(rank: TrainerRank, config: TrainerConfig, model_dir: Path) -> list[dict[str, Tensor]]:
        from perm_ray.trainer.learner import Learner

        learner = Learner(config, model_dir, rank.rank, STEPS)
        seen = [{name: weight.clone() for name, weight in _trained(learner._policy)}]
        for step, batch in enumerate(batches()):
            plan = plan_step(batch, config.micro_batch_tokens, config.num_ranks)
            learner.step(step, plan[rank.rank], lambda: False)
            seen.append({name: weight.clone() for name, weight in _trained(learner._policy)})
        return seen

    config = dataclasses.replace(CONFIG, zero_stage=3, num_ranks=2, ema_decay=0.5, lora=lora)
    folder = table.folder / f"average-{lora.rank}"
    in_ranks(table.groups[2], train_and_resume, config, table.model_dir, folder)
    one = dataclasses.replace(CONFIG, zero_stage=0, lora=lora)
    ((w0, w1, w2, w3),) = in_ranks(table.groups[1], after_each_step, one, table.model_dir)
    average = {name: w3[name] / 2 + w2[name] / 4 + w1[name] / 8 + w0[name] / 8 for name in w0}
    if lora.rank == 0:
        found = load_file(folder / "policy" / "model.safetensors")
    else:
        adapter = load_file(folder / "policy_adapter" / "adapter_model.safetensors")
        found = {
            name.removeprefix("base_model.model.").replace(".weight", ".default.weight"): weight
            for name, weight in adapter.items()
        }
    assert largest_difference(found, average) < 1e-5


def _trained(model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, p.detach()) for name, p in model.named_parameters() if p.requires_grad]
