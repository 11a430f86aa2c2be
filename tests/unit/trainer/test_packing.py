"""Packed rows against transformers' own forward: dialogues of several turns, and another temperature."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from perm_ray.config.training import ObjectiveConfig
from perm_ray.errors import RunError
from perm_ray.trainer.batching import RankBatch, Totals, TrainSequence, plan_step
from perm_ray.trainer.losses import LOSSES
from perm_ray.trainer.objectives.policy import PolicyObjective
from perm_ray.trainer.objectives.preference import PreferenceObjective
from perm_ray.trainer.objectives.supervised import SupervisedObjective
from perm_ray.trainer.packing import PackedBatch, check_packing, load_policy, pack
from perm_ray.types import Span
from tests.support.tiny_model import write_tiny_model

PROMPT = (5, 6, 7, 8)


def said(*token_ids: int, version: int = 0) -> Span:
    logprobs = tuple(-5.0 - token / 100 for token in token_ids)
    return Span("assistant", token_ids, logprobs, ((version, len(token_ids)),))


def asked(*token_ids: int) -> Span:
    return Span("user", token_ids)


# Three continuations of one prompt, and a sequence with a prompt of its own.
DIALOGUES = (
    TrainSequence.of(PROMPT, [said(20, 21), asked(30, 31, 32), said(22), asked(33), said(23, 24)], 0.8),
    TrainSequence.of(PROMPT, [said(40, 41, 42)], -1.2),
    TrainSequence.of(PROMPT, [said(50), asked(51), said(52)], 0.4),
    TrainSequence.of((9, 10), [said(60, 61), asked(62, 63), said(64)], -0.3),
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def stock(model_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)


def scored(model: Any, sequences: Sequence[TrainSequence], temperature: float) -> list[Tensor]:
    """Log-probability of each trained token, one sequence at a time, with all logits."""
    found = []
    for sequence in sequences:
        ids = torch.tensor([sequence.token_ids])
        log_p = (model(input_ids=ids, use_cache=False).logits[0, :-1] / temperature).log_softmax(-1)
        places = [place for place, trained in enumerate(sequence.trained) if trained]
        found.append(torch.stack([log_p[place - 1, sequence.token_ids[place]] for place in places]))
    return found


class PlainEngine:
    """A model in the place of the DeepSpeed engine around it."""

    device = torch.device("cpu")

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, batch: PackedBatch, **options: bool) -> tuple[Tensor, Tensor]:
        return self._model(batch, **options)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_trained_tokens_of_dialogues_have_the_stock_models_logprobs(
    model_dir: Path, stock: Any, temperature: float
) -> None:
    policy = load_policy(model_dir, torch.float32)
    check_packing(policy)
    batch = pack((DIALOGUES[:3], DIALOGUES[3:]), torch.device("cpu"), temperature)
    assert batch.input_ids.shape[1] == 4 + 9 + 3 + 3 + 2 + 5  # the prompt of three is there once
    assert batch.targets.tolist() == [20, 21, 22, 23, 24, 40, 41, 42, 50, 52, 60, 61, 64]
    assert batch.segments.lengths.tolist() == [5, 3, 2, 3]
    packed, _ = policy(batch)
    torch.testing.assert_close(packed, torch.cat(scored(stock, DIALOGUES, temperature)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_loss_of_dialogues_is_that_of_plain_torch(
    model_dir: Path, stock: Any, loss: Any, temperature: float
) -> None:
    """Value and gradient of one on-policy update; a user's tokens have no part in either."""
    policy = load_policy(model_dir, torch.float32)
    config = ObjectiveConfig(loss=loss, kl_coef=0.0, constant_length=8)
    objective = PolicyObjective(PlainEngine(policy), config, None, temperature)
    ((share,),) = plan_step(DIALOGUES, budget_tokens=1000, num_ranks=1)
    assert share.totals == Totals(tokens=13, sequences=4)
    objective.begin_step([share])
    found, sums = objective(share.micro_batches[0], share.totals)
    found.backward()

    stock.zero_grad()
    weights = {"grpo": lambda n: 1 / (n * 4), "gspo": lambda n: 1 / (n * 4), "dr_grpo": lambda _: 1 / 32}
    expected = torch.zeros(())
    logprobs = scored(stock, DIALOGUES, temperature)
    for sequence, own in zip(DIALOGUES, logprobs, strict=True):
        weight = weights.get(loss, lambda _: 1 / 13)(len(own))
        ratio = own if loss == "cispo" else (own - own.detach()).exp()
        expected = expected - weight * sequence.advantage * ratio.sum()
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    ours = dict(policy.named_parameters())
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad, atol=1e-5, rtol=1e-3)

    sampler = torch.tensor([value for sequence in DIALOGUES for value in sequence.logprobs])
    difference = (sampler - torch.cat(logprobs).detach()).abs()
    assert sums.tokens == 13
    assert sums.logprob_diff == pytest.approx(float(difference.sum()), abs=1e-4)


def test_the_supervised_loss_is_the_cross_entropy_of_trained_tokens(model_dir: Path, stock: Any) -> None:
    """A dialogue with hard targets beside one whose first token has a distribution; values and gradients."""
    soft = (((40, 0.25), (300, 0.75)), ((41, 1.0),), ((42, 0.5), (1, 0.5)))
    mixed = (DIALOGUES[0], dataclasses.replace(DIALOGUES[1], soft_targets=soft))
    policy = load_policy(model_dir, torch.float32)
    objective = SupervisedObjective(PlainEngine(policy))
    totals = Totals(tokens=8, sequences=2)
    objective.begin_step([])
    found, sums = objective((mixed,), totals)
    found.backward()

    stock.zero_grad()
    log_p = stock(input_ids=torch.tensor([mixed[1].token_ids]), use_cache=False).logits[0].log_softmax(-1)
    expected = -torch.cat(scored(stock, mixed[:1], 1.0)).sum()
    for offset, pairs in enumerate(soft):
        for token, probability in pairs:
            expected = expected - probability * log_p[len(PROMPT) - 1 + offset, token]
    (expected / 8).backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()) / 8, abs=1e-5)
    assert (sums.tokens, sums.loss) == (8, pytest.approx(float(found.detach()), abs=1e-6))
    ours = dict(policy.named_parameters())
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("apart", [False, True])
def test_the_preference_loss_is_bradley_terry_on_expected_scores(
    model_dir: Path, stock: Any, apart: bool
) -> None:
    """Values and gradients by autograd through both scores; the pair in one micro-batch, and in two."""
    values = ((40, 1.0), (41, 2.0), (42, 3.0))
    texts = [(7, 8, 9, 40), (7, 8, 11, 12, 40)]
    better, worse = (
        TrainSequence(ids, (*(False,) * (len(ids) - 1), True), (0.0,), 0.0, (values,), pair=pair)
        for ids, pair in zip(texts, (1, -1), strict=True)
    )
    policy = load_policy(model_dir, torch.float32)
    objective = PreferenceObjective(PlainEngine(policy))
    batches = (((better,),), ((worse,),), ()) if apart else (((better,), (worse,)),)
    totals = Totals(tokens=2, sequences=2)
    objective.begin_step([RankBatch(batches, totals)])
    parts = [objective(batch, totals) for batch in batches]
    for loss, _ in parts:
        loss.backward()

    stock.zero_grad()
    scores = []
    for ids in texts:
        logits = stock(input_ids=torch.tensor([ids]), use_cache=False).logits[0, len(ids) - 2]
        chances = logits[[token for token, _ in values]].softmax(0)
        scores.append((chances * torch.tensor([value for _, value in values])).sum())
    expected = -torch.nn.functional.logsigmoid(scores[0] - scores[1])
    expected.backward()
    assert sum(sums.loss for _, sums in parts) == pytest.approx(float(expected.detach()), abs=1e-5)
    ours = dict(policy.named_parameters())
    for name, parameter in stock.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad, atol=1e-5, rtol=1e-3)


def test_soft_targets_of_another_number_are_refused() -> None:
    with pytest.raises(RunError, match="one for each of its 3 trained tokens, found 1"):
        dataclasses.replace(DIALOGUES[1], soft_targets=(((40, 1.0),),))


def test_a_users_turn_at_the_end_is_left_out() -> None:
    sequence = TrainSequence.of(PROMPT, [said(20, 21), asked(30, 31)], 1.0)
    assert (sequence.token_ids, sequence.num_trained) == ((*PROMPT, 20, 21), 2)
    with pytest.raises(RunError, match="a trained token after it"):
        TrainSequence.of(PROMPT, [asked(30)], 1.0)
