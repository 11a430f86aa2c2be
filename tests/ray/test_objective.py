"""Each objective on two ranks, in several updates a step, against the same updates in plain torch.

What the terms are is settled in the unit tests; here it is that ranks, micro-batches and updates change
nothing about them. Of the second step's only completion one rank gets nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from ray import cloudpickle
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from perm_ray.config.training import ObjectiveConfig, TrainerConfig
from perm_ray.trainer.actor import TrainerRank
from perm_ray.trainer.batching import RankBatch, Totals, TrainSequence, plan_step
from perm_ray.trainer.group import TrainerGroup
from perm_ray.trainer.objectives.policy import TokenBatch, policy_loss
from perm_ray.trainer.segments import Segments
from perm_ray.trainer.step_metrics import StepSums, step_metrics
from tests.support.ranks import in_ranks
from tests.support.sequences import random_sequences
from tests.support.tiny_model import VOCABULARY

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

SEED = 1
CONFIG = TrainerConfig(  # of learners; how their processes run is in conftest.py
    num_ranks=2,
    dtype="float32",
    micro_batch_tokens=64,
    lr=1e-3,
    warmup_ratio=0.0,
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


Plan: TypeAlias = list[list[RankBatch]]


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
        lengths = [sequence.num_trained for sequence in minibatch]
        segments = Segments.of(lengths)
        tokens = TokenBatch(
            logprobs=logprobs,
            old_logprobs=old,
            sampler_logprobs=torch.tensor([p for sequence in minibatch for p in sequence.logprobs]),
            reference_logprobs=reference if self._config.objective.kl_coef > 0 else None,
            entropy=entropy,
            advantages=segments.spread(torch.tensor([sequence.advantage for sequence in minibatch])),
            segments=segments,
        )
        loss, _ = policy_loss(tokens, totals, self._config.objective)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.max_grad_norm)
        self._optimizer.step()
        return float(loss.detach())


def scored(model: torch.nn.Module, sequences: Sequence[TrainSequence]) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of the completions' tokens by transformers' own forward, one after another."""
    logprobs, entropies = [], []
    for sequence in sequences:
        ids, trained = torch.tensor([sequence.token_ids]), torch.tensor(sequence.trained)[1:]
        logps = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)[trained]
        logprobs.append(logps.gather(-1, ids[0, 1:, None][trained])[:, 0])
        entropies.append(-(logps.exp() * logps).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


def batch(model: torch.nn.Module, count: int, seed: int) -> list[TrainSequence]:
    """Random sequences of unequal lengths, three of a prompt; the sampler is off by hundredths of a nat."""
    rng = random.Random(seed)
    sequences: list[TrainSequence] = []
    drawn = random_sequences(
        rng,
        count,
        per_prompt=3,
        vocabulary=range(VOCABULARY),
        prompt_tokens=(3, 12),
        completion_tokens=(3, 30),
        logprob=0.0,
    )
    for blank in drawn:
        with torch.no_grad():
            logprobs, _ = scored(model, [blank])
        sampled = tuple(value + rng.gauss(0, 0.05) for value in logprobs.tolist())
        sequences.append(dataclasses.replace(blank, logprobs=sampled))
    return sequences


def train(
    rank: TrainerRank, config: TrainerConfig, model_dir: Path, folder: Path, steps: Sequence[Plan]
) -> list[StepSums]:
    """Runs in a rank: a new learner trains its shares of `steps` and writes what it has become."""
    from perm_ray.trainer.learner import Learner

    learner = Learner(config, model_dir, rank.rank, len(steps))
    sums = [learner.step(step, plan[rank.rank], lambda: False) for step, plan in enumerate(steps)]
    learner.export(folder)
    return sums


def stop_at(
    rank: TrainerRank, config: TrainerConfig, model_dir: Path, plan: Plan, votes: Sequence[int]
) -> list[bool]:
    """Runs in a rank: whether a step of two updates that is asked to stop from its n-th vote on, counted from
    0, is given up; for each n of `votes`."""
    from perm_ray.trainer.learner import Learner

    interrupted = []
    for vote in votes:
        learner, cast = Learner(config, model_dir, rank.rank, 1), itertools.count()
        twice = plan[rank.rank] * 2  # the one minibatch twice: two updates
        interrupted.append(learner.step(0, twice, lambda at=vote, cast=cast: next(cast) >= at).interrupted)
    return interrupted


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ranks_and_updates_change_nothing_about_an_objective(
    groups: dict[int, TrainerGroup], tiny_model: Path, tmp_path: Path, name: str
) -> None:
    stage, wanted = OBJECTIVES[name]
    config = dataclasses.replace(CONFIG, zero_stage=stage, objective=wanted)
    plain, losses, plans = PlainTorch(tiny_model, config), [], []
    for step, count in enumerate((9, 1)):
        sequences = batch(plain.model, count, seed=step)
        losses.append(plain.train_step(step, sequences))
        budget, ranks = config.micro_batch_tokens, config.num_ranks
        plans.append(plan_step(sequences, budget, ranks, wanted.minibatches, f"{SEED}/{step}"))
    reports = in_ranks(groups[2], train, config, tiny_model, tmp_path / "model", plans)
    metrics = [step_metrics(ranks) for ranks in zip(*reports, strict=True)]
    assert [row["policy/loss"] for row in metrics] == pytest.approx(losses, rel=1e-3, abs=1e-5)
    several = metrics[0]  # the updates move the policy, and the bounds are felt
    assert several["policy/clip_fraction"] > 0
    assert (several["policy/mismatch_clipped"] > 0) == (wanted.mismatch == "token_truncate")
    assert several["policy/mismatch_mean"] == pytest.approx(1.0, abs=0.2)
    assert 0 < several["policy/mismatch_kl"] < 0.01
    weights = load_file(tmp_path / "model" / "model.safetensors")
    expected = {key: weight.detach() for key, weight in plain.model.named_parameters()}
    assert weights.keys() == expected.keys()
    moved = load_file(tiny_model / "model.safetensors")
    assert max(float((weights[key] - moved[key].float()).abs().max()) for key in weights) > CONFIG.lr
    # A tenth of one update: AdamW makes a share of lr out of the rounding of a gradient that is nearly zero.
    assert max(float((weights[key] - expected[key]).abs().max()) for key in weights) < CONFIG.lr / 10


def test_a_step_that_has_begun_to_update_is_finished(
    groups: dict[int, TrainerGroup], tiny_model: Path
) -> None:
    """A stop is heeded until the first update: after it the policy is another one."""
    sequences = batch(AutoModelForCausalLM.from_pretrained(tiny_model), 9, seed=0)
    plan = plan_step(sequences, CONFIG.micro_batch_tokens, CONFIG.num_ranks)
    before_the_update = len(plan[0][0].micro_batches)  # votes come before each micro-batch and the update
    votes = (before_the_update + 1, before_the_update)
    found = in_ranks(groups[2], stop_at, CONFIG, tiny_model, plan, votes)
    assert found == [[False, True]] * CONFIG.num_ranks
