"""The trainer group on a tiny random Llama: real Ray, real DeepSpeed, one or two ranks on CPU."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from perm_ray.config.training import ObjectiveConfig, TrainerConfig
from perm_ray.errors import ActorFailedError, Interrupted, ModelError, RunError
from perm_ray.trainer.batching import TrainSequence, plan_step
from perm_ray.trainer.group import TrainerGroup
from perm_ray.trainer.packing import check_packing, completion_logprobs, load_policy, pack
from tests.support.ranks import in_ranks
from tests.support.sequences import random_sequences
from tests.support.tiny_model import VOCABULARY

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]

CONFIG = TrainerConfig(
    num_cpus=1,
    num_threads=1,
    dtype="float32",
    micro_batch_tokens=128,
    lr=1e-4,
    warmup_ratio=0.2,
    objective=ObjectiveConfig(kl_coef=0.05),
    start_timeout_s=120,
    step_timeout_s=60,
    collective_timeout_s=30,
)
TOTAL_STEPS = 10  # so that warm-up is two steps
Start = Callable[..., TrainerGroup]


@pytest.fixture
def start(ray_cluster: int, tiny_model: Path) -> Iterator[Start]:
    """Starts a group with CONFIG and the given changes; shuts every group down at the end."""
    groups: list[TrainerGroup] = []

    def start_group(**changes: object) -> TrainerGroup:
        config = dataclasses.replace(CONFIG, **changes)
        group = TrainerGroup(config, tiny_model, seed=1, total_steps=TOTAL_STEPS)
        groups.append(group)
        group.start_async()
        group.wait_ready()
        return group

    yield start_group
    for group in groups:
        group.shutdown()


def sequences(count: int, seed: int = 0, completion_tokens: tuple[int, int] = (5, 60)) -> list[TrainSequence]:
    """Random prompts of three completions each, of unequal lengths; the sampler 'was' off by 0.1 nats."""
    drawn = random_sequences(
        random.Random(seed),
        count,
        per_prompt=3,
        vocabulary=range(VOCABULARY),
        prompt_tokens=(3, 20),
        completion_tokens=completion_tokens,
        logprob=-6.0,
    )
    return list(drawn)


def exported(group: TrainerGroup, path: Path) -> dict[str, Tensor]:
    group.export(path)
    return load_file(path / "model.safetensors")


def largest_difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


# --- the objective, against plain torch --------------------------------------------------------------


def stock_logits(model: torch.nn.Module, sequence: TrainSequence) -> Tensor:
    """Logits that predict the completion, by transformers' own forward, one sequence at a time."""
    ids = torch.tensor([sequence.token_ids])
    return model(input_ids=ids, use_cache=False).logits[0, :-1][torch.tensor(sequence.trained)[1:]]


def stock_logprobs(model: torch.nn.Module, sequence: TrainSequence) -> Tensor:
    targets = torch.tensor(sequence.token_ids)[torch.tensor(sequence.trained), None]
    return stock_logits(model, sequence).log_softmax(-1).gather(-1, targets)[:, 0]


class PlainTorch:
    """The same training without packing, micro-batches, ranks, Ray or DeepSpeed."""

    def __init__(self, model_dir: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        self.reference = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=0.0)

    def train_step(self, step: int, batch: list[TrainSequence]) -> dict[str, float]:
        total = sum(sequence.num_trained for sequence in batch)
        loss, kl, entropy = torch.zeros(()), 0.0, 0.0
        for sequence in batch:
            logprobs = stock_logprobs(self.model, sequence)
            with torch.no_grad():
                difference = stock_logprobs(self.reference, sequence) - logprobs
                rows = stock_logits(self.model, sequence)
                entropy += float(torch.distributions.Categorical(logits=rows).entropy().sum())
            # d k3 / d logprob = 1 - exp(reference - logprob); the ratio is 1, its gradient A
            surrogate = (logprobs - logprobs.detach()) * (-sequence.advantage)
            penalty = CONFIG.objective.kl_coef * (1 - difference.exp()) * logprobs
            loss = loss + (surrogate + penalty).sum() / total
            kl += float((difference.exp() - difference - 1).sum())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CONFIG.max_grad_norm)
        lr = CONFIG.lr * min(1.0, (step + 1) / 2)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        surrogate_mean = -sum(s.advantage * s.num_trained for s in batch) / total
        return {
            "policy/loss": surrogate_mean + CONFIG.objective.kl_coef * kl / total,
            "policy/kl": kl / total,
            "policy/entropy": entropy / total,
            "policy/grad_norm": float(norm),
            "policy/lr": lr,
        }


@pytest.mark.parametrize(("num_ranks", "zero_stage"), [(1, 0), (2, 2)])  # the others: test_equivalence.py
def test_any_number_of_ranks_trains_as_plain_torch(
    start: Start, tiny_model: Path, tmp_path: Path, num_ranks: int, zero_stage: int
) -> None:
    plain = PlainTorch(tiny_model)
    group = start(num_ranks=num_ranks, zero_stage=zero_stage)
    # The last batch is one sequence: with two ranks, one has nothing to do.
    for step, batch in enumerate([sequences(9), sequences(6, seed=1), sequences(1, seed=2)]):
        metrics = group.train_step(step, batch)
        expected = plain.train_step(step, batch)
        assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert metrics["policy/clip_fraction"] == 0.0
        assert 0 < metrics["policy/logprob_diff_mean"] < metrics["policy/logprob_diff_max"]
    weights = exported(group, tmp_path / "model")
    expected_weights = {name: weight.detach() for name, weight in plain.model.named_parameters()}
    assert largest_difference(weights, expected_weights) < 1e-5


@pytest.mark.parametrize("count", [7, 90])  # 90: over 2,048 completion tokens, the head in several blocks
@pytest.mark.parametrize("share_prompts", [True, False])
def test_packed_logprobs_and_gradients_equal_one_sequence_at_a_time(
    tiny_model: Path, count: int, share_prompts: bool
) -> None:
    """Three completions of each prompt read it, and none reads another."""
    ((share,),) = plan_step(
        sequences(count, seed=3, completion_tokens=(1, 60)), 10**6, 1, share_prompts=share_prompts
    )
    (micro_batch,) = share.micro_batches
    assert len(micro_batch) == (math.ceil(count / 3) if share_prompts else count)
    batch = [sequence for unit in micro_batch for sequence in unit]
    policy = load_policy(tiny_model, torch.float32)
    stock = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    logprobs, entropy = completion_logprobs(policy, pack(micro_batch, torch.device("cpu")), with_entropy=True)
    expected = torch.cat([stock_logprobs(stock, sequence) for sequence in batch])
    with torch.no_grad():
        rows = torch.cat([stock_logits(stock, sequence) for sequence in batch])
    torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        entropy, torch.distributions.Categorical(logits=rows).entropy(), atol=1e-4, rtol=0
    )
    assert logprobs.requires_grad
    assert not entropy.requires_grad
    weights = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(count))
    for scored in (logprobs, expected):
        (scored * weights).sum().backward()
    for (name, ours), theirs in zip(policy.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-3, msg=name)


def test_a_model_that_would_mix_packed_sequences_is_refused(tiny_model: Path) -> None:
    policy = load_policy(tiny_model, torch.float32)
    check_packing(policy)
    with pytest.raises(ModelError, match="without sequence boundaries"):
        type(policy).forward(policy, input_ids=torch.arange(8)[None], use_cache=False)


class SoftCapped(LlamaForCausalLM):
    """Does more to its logits than multiply, as Gemma does."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output: Any = super().forward(*args, **kwargs)
        output.logits = torch.tanh(output.logits)
        return output


def test_a_model_whose_head_does_more_than_multiply_is_refused(tiny_model: Path) -> None:
    policy = load_policy(tiny_model, torch.float32)
    policy.__class__ = SoftCapped
    with pytest.raises(ModelError, match="other log-probabilities packed than alone"):
        check_packing(policy)


# --- checkpoints, interruption, failure --------------------------------------------------------------


def test_an_export_loads_with_its_tokenizer(start: Start, tiny_model: Path, tmp_path: Path) -> None:
    group = start(dtype="bfloat16", objective=ObjectiveConfig(kl_coef=0.0))
    group.export(tmp_path / "model")
    original = load_file(tiny_model / "model.safetensors")
    assert largest_difference(load_file(tmp_path / "model" / "model.safetensors"), original) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.config.use_cache
    assert tokenizer.chat_template
    metrics = group.train_step(0, sequences(3))
    assert metrics["policy/kl"] == 0.0

    broken = dataclasses.replace(sequences(1)[0], advantage=float("nan"))
    with pytest.raises(RunError, match="loss of step 1 is not a finite number"):
        group.train_step(1, [broken, *sequences(3)])
    with pytest.raises(RunError, match="not running: it has failed"):
        group.save(tmp_path / "checkpoint")


def test_a_stopped_step_leaves_the_policy_as_it_was_and_a_killed_rank_ends_the_group(
    start: Start, tmp_path: Path
) -> None:
    group = start(num_ranks=2)
    group.train_step(0, sequences(4))
    before = exported(group, tmp_path / "before")
    threading.Timer(0.3, group.request_stop).start()
    begin = time.monotonic()
    with pytest.raises(Interrupted, match="Step 1 was given up"):
        group.train_step(1, sequences(2000))
    assert time.monotonic() - begin < 10
    after = exported(group, tmp_path / "after")
    assert all(torch.equal(before[name], after[name]) for name in before)
    group.save(tmp_path / "checkpoint")()
    group.shutdown()

    resumed = start(num_ranks=2)
    resumed.load(tmp_path / "checkpoint")
    loaded = exported(resumed, tmp_path / "loaded")
    assert all(torch.equal(before[name], loaded[name]) for name in before)
    kill_a_rank_in_mid_step(resumed)


def kill_a_rank_in_mid_step(group: TrainerGroup) -> None:
    """The step fails at once and the dead rank is named."""
    victim = in_ranks(group, lambda _: os.getpid())[1]
    threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
    begin = time.monotonic()
    with pytest.raises(ActorFailedError, match=r"trainer rank 1 \(node \S+\) died .*training step 4"):
        group.train_step(4, sequences(2000))
    assert time.monotonic() - begin < 10
