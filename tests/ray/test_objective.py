"""Each objective on two ranks, in several updates a step, against the same updates in plain torch.

What the terms are is settled in the unit tests; here it is that ranks, micro-batches and updates change
nothing about them. Of the second step's only completion one rank gets nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from perm_ray.config.training import ObjectiveConfig, TrainerConfig
from perm_ray.testing.tiny_model import VOCABULARY
from perm_ray.trainer.actor import TrainerRank
from perm_ray.trainer.batching import Totals, TrainSequence, plan_step
from perm_ray.trainer.group import TrainerGroup
from perm_ray.trainer.metrics import StepSums
from perm_ray.trainer.objective import TokenBatch, objective
from perm_ray.trainer.segments import Segments

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

SEED = 1
CONFIG = TrainerConfig(
    num_ranks=2,
    num_cpus=1,
    num_threads=1,
    dtype="float32",
    micro_batch_tokens=64,
    lr=1e-3,
    warmup_ratio=0.0,
    start_timeout_s=120,
    step_timeout_s=60,
    collective_timeout_s=30,
)
# Between them: every loss, estimator and kind of mismatch, the entropy bonus, and epochs and minibatches
# alone and together. Bounds are narrow, so that a step's own updates reach them.
NARROW = ObjectiveConfig(clip_low=0.01, clip_high=0.02, kl_coef=0.05, epochs=2, minibatches=2)
OBJECTIVES = {
    "dapo": (
        2,
        dataclasses.replace(NARROW, entropy_coef=0.05, mismatch="token_truncate", mismatch_high=1.05),
    ),
    "grpo": (3, dataclasses.replace(NARROW, loss="grpo", kl_estimator="k2", dual_clip=1.05)),
    "dr_grpo": (2, dataclasses.replace(NARROW, loss="dr_grpo", constant_length=40, kl_ratio_weighted=True)),
    "gspo": (2, dataclasses.replace(NARROW, loss="gspo", epochs=1, minibatches=3, mismatch="sequence_mask")),
    "cispo": (1, dataclasses.replace(NARROW, loss="cispo", epochs=3, minibatches=1, kl_coef=0.0)),
}
Start = Callable[[TrainerConfig], TrainerGroup]


@pytest.fixture
def start(ray_cluster: None, tiny_model: Path) -> Iterator[Start]:
    groups: list[TrainerGroup] = []

    def start_group(config: TrainerConfig) -> TrainerGroup:
        group = TrainerGroup(config, tiny_model, seed=SEED, total_steps=2)
        groups.append(group)
        group.start_async()
        group.wait_ready()
        return group

    yield start_group
    for group in groups:
        group.shutdown()


class PlainTorch:
    """The same updates on one model without packing, micro-batches, ranks, Ray or DeepSpeed."""

    def __init__(self, model_dir: Path, config: TrainerConfig) -> None:
        self._config = config
        self.model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        self._reference = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.lr, weight_decay=0.0)

    def train_step(self, step: int, batch: Sequence[TrainSequence]) -> float:
        """The mean of the updates' losses."""
        wanted = self._config.objective
        (plan,) = plan_step(batch, 10**6, 1, wanted.minibatches, f"{SEED}/{step}")
        minibatches = [[s for unit in share.micro_batches[0] for s in unit] for share in plan]
        with torch.no_grad():
            old = [scored(self.model, minibatch)[0] for minibatch in minibatches]
            reference = [scored(self._reference, minibatch)[0] for minibatch in minibatches]
        losses = []
        for _ in range(wanted.epochs):
            for minibatch, share, before, base in zip(minibatches, plan, old, reference, strict=True):
                losses.append(self._update(minibatch, share.totals, before, base))
        return sum(losses) / len(losses)

    def _update(
        self, minibatch: Sequence[TrainSequence], totals: Totals, old: Tensor, reference: Tensor
    ) -> float:
        logprobs, entropy = scored(self.model, minibatch)
        lengths = [len(sequence.completion_ids) for sequence in minibatch]
        segments = Segments.of(lengths)
        tokens = TokenBatch(
            logprobs=logprobs,
            old_logprobs=old,
            sampler_logprobs=torch.tensor([p for sequence in minibatch for p in sequence.sampler_logprobs]),
            reference_logprobs=reference if self._config.objective.kl_coef > 0 else None,
            entropy=entropy,
            advantages=segments.spread(torch.tensor([sequence.advantage for sequence in minibatch])),
            segments=segments,
        )
        loss, _ = objective(tokens, totals, self._config.objective)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.max_grad_norm)
        self._optimizer.step()
        return float(loss.detach())


def scored(model: torch.nn.Module, sequences: Sequence[TrainSequence]) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of the completions' tokens by transformers' own forward, one after another."""
    logprobs, entropies = [], []
    for sequence in sequences:
        ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
        rows = model(input_ids=ids, use_cache=False).logits[0, len(sequence.prompt_ids) - 1 : -1]
        logps = rows.log_softmax(-1)
        logprobs.append(logps.gather(-1, torch.tensor(sequence.completion_ids)[:, None])[:, 0])
        entropies.append(-(logps.exp() * logps).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


def batch(model: torch.nn.Module, count: int, seed: int) -> list[TrainSequence]:
    """Random sequences of unequal lengths, three of a prompt; the sampler is off by hundredths of a nat."""
    rng = random.Random(seed)
    sequences: list[TrainSequence] = []
    prompt: tuple[int, ...] = ()
    for index in range(count):
        if index % 3 == 0:
            prompt = tuple(rng.choices(range(VOCABULARY), k=rng.randint(3, 12)))
        completion = tuple(rng.choices(range(VOCABULARY), k=rng.randint(3, 30)))
        blank = TrainSequence(prompt, completion, (0.0,) * len(completion), rng.gauss(0, 1))
        with torch.no_grad():
            logprobs, _ = scored(model, [blank])
        sampled = tuple(value + rng.gauss(0, 0.05) for value in logprobs.tolist())
        sequences.append(dataclasses.replace(blank, sampler_logprobs=sampled))
    return sequences


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ranks_and_updates_change_nothing_about_an_objective(
    start: Start, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    stage, wanted = OBJECTIVES[name]
    config = dataclasses.replace(CONFIG, zero_stage=stage, objective=wanted)
    plain, group = PlainTorch(tiny_model, config), start(config)
    sequences: list[TrainSequence] = []
    for step, count in enumerate((9, 1)):
        sequences = batch(plain.model, count, seed=step)
        metrics = group.train_step(step, sequences)
        assert metrics["policy/loss"] == pytest.approx(plain.train_step(step, sequences), rel=1e-3, abs=1e-5)
        if count > 1:  # the updates move the policy, and the bounds are felt
            assert metrics["policy/clip_fraction"] > 0
            clipped = wanted.mismatch == "token_truncate"
            assert (metrics["policy/mismatch_clipped"] > 0) == clipped
            assert metrics["policy/mismatch_mean"] == pytest.approx(1.0, abs=0.2)
            assert 0 < metrics["policy/mismatch_kl"] < 0.01
    group.export(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    expected = {key: weight.detach() for key, weight in plain.model.named_parameters()}
    assert weights.keys() == expected.keys()
    moved = load_file(tiny_model / "model.safetensors")
    assert max(float((weights[key] - moved[key].float()).abs().max()) for key in weights) > CONFIG.lr
    # A tenth of one update: AdamW makes a share of lr out of the rounding of a gradient that is nearly zero.
    assert max(float((weights[key] - expected[key]).abs().max()) for key in weights) < CONFIG.lr / 10
    if name == "dapo":
        a_step_that_has_begun_to_update_is_finished(group, config, sequences)


def a_step_that_has_begun_to_update_is_finished(
    group: TrainerGroup, config: TrainerConfig, sequences: Sequence[TrainSequence]
) -> None:
    """A stop is heeded until the first update: after it the policy is another one."""
    plan = plan_step(sequences, config.micro_batch_tokens, config.num_ranks)
    schedule = [share * 2 for share in plan]  # the one minibatch twice: two updates

    def step_stopped_at(rank: TrainerRank, vote: int) -> StepSums:
        """A step on this rank that is asked to stop from its vote number `vote` on, counted from 0."""
        votes = itertools.count()
        return rank._learner.step(7, schedule[rank.rank], lambda: next(votes) >= vote)

    before_the_update = len(plan[0][0].micro_batches)  # votes come before each micro-batch and the update
    for vote, interrupted in ((before_the_update + 1, False), (before_the_update, True)):
        reports = group.apply(step_stopped_at, vote, doing="a stopped step", timeout_s=60)
        assert [report.interrupted for report in reports] == [interrupted] * config.num_ranks
