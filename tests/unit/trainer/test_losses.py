"""GRPO's objective against values worked by hand, against numpy, and its gradient by differences.

What TRL computes too is compared with TRL in `test_oracle.py`.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from perm_ray.config.training import ObjectiveConfig
from perm_ray.trainer.batching import Totals
from perm_ray.trainer.losses import (
    LOSSES,
    capped_surrogate,
    clipped_surrogate,
    constant_length,
    kl_k1,
    kl_k2,
    kl_k3,
    sequence_mean,
    sequence_ratio,
    token_mean,
    token_ratio,
)
from perm_ray.trainer.mismatch import mismatch
from perm_ray.trainer.objectives.policy import TokenBatch, policy_loss
from perm_ray.trainer.segments import Segments


def _log(*ratios: float) -> Tensor:
    return torch.tensor(ratios, dtype=torch.float64).log()


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def surrogate(
    ratio: Tensor, advantages: Tensor, low: float, high: float, dual: float | None = None
) -> tuple[Tensor, Tensor]:
    config = ObjectiveConfig(clip_low=low, clip_high=high, dual_clip=dual)
    return clipped_surrogate(torch.zeros_like(ratio), ratio, advantages, config)


def mean_of(losses: Tensor, tokens: int) -> Tensor:
    return token_mean(losses, Segments.of([len(losses)]), Totals(tokens, 1), ObjectiveConfig())


def ratio_of(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    return token_ratio(logprobs, old_logprobs, Segments.of([len(logprobs)]))


# Ratios 0.5, 1, 1.1 and 2 with clipping to [0.8, 1.3].
RATIOS = (0.5, 1.0, 1.1, 2.0)
BY_HAND = {
    # A = +2: -min(2 r, 2 clip(r)): 0.5 -> 1.0 unclipped, 2 -> capped at 2.6
    2.0: ((-1.0, -2.0, -2.2, -2.6), (False, False, False, True)),
    # A = -1: -min(-r, -clip(r)): 0.5 -> held at 0.8, 2 -> 2.0 unclipped
    -1.0: ((0.8, 1.0, 1.1, 2.0), (True, False, False, False)),
}


@pytest.mark.parametrize("advantage", BY_HAND)
def test_the_clipped_surrogate_by_hand(advantage: float) -> None:
    losses, clipped = BY_HAND[advantage]
    args = (_tensor(*RATIOS), torch.full((4,), advantage), 0.2, 0.3)
    found, is_clipped = surrogate(*args)
    torch.testing.assert_close(found, _tensor(*losses))
    assert is_clipped.tolist() == list(clipped)


def test_kl_by_hand() -> None:
    # reference / policy = 1, 2, 1/2: x - ln x - 1 = 0, 1 - ln 2, ln 2 - 1/2
    estimate = kl_k3(_log(0.5, 0.25, 0.5), _log(0.5, 0.5, 0.25))
    torch.testing.assert_close(estimate, _tensor(0.0, 0.306852819440, 0.193147180560))


def test_dapo_weighs_each_token_of_the_step_the_same() -> None:
    step = _tensor(3.0, 1.0, 2.0, 6.0)
    halves = mean_of(step[:1], 4) + mean_of(step[1:], 4)
    assert float(halves) == pytest.approx(float(mean_of(step, 4))) == 3.0


def test_agrees_with_numpy_on_random_tokens() -> None:
    rng = np.random.default_rng(7)
    new, old, reference = (rng.normal(-2, 0.3, 500) for _ in range(3))
    advantages = rng.normal(0, 1, 500)
    low, high, kl_coef = 0.2, 0.28, 0.01

    ratio = np.exp(new - old)
    bounded = np.where(
        advantages >= 0,
        np.minimum(ratio, 1 + high) * advantages,
        np.maximum(ratio, 1 - low) * advantages,
    )
    kl = np.exp(reference) / np.exp(new) - np.log(np.exp(reference) / np.exp(new)) - 1
    expected = np.mean(-bounded + kl_coef * kl)

    logprobs, old_logprobs, reference_logprobs, a = map(torch.from_numpy, (new, old, reference, advantages))
    losses, _ = surrogate(ratio_of(logprobs, old_logprobs), a, low, high)
    losses = losses + kl_coef * kl_k3(logprobs, reference_logprobs)
    assert float(mean_of(losses, 500)) == pytest.approx(expected, abs=1e-12)


def test_the_gradient_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    logprobs = torch.randn(40, dtype=torch.float64, requires_grad=True)
    old, reference, advantages = torch.randn(3, 40, dtype=torch.float64)

    def objective(x: Tensor) -> Tensor:
        losses, _ = surrogate(ratio_of(x, old), advantages, 0.2, 0.2)
        return mean_of(losses + 0.01 * kl_k3(x, reference), 40)

    assert torch.autograd.gradcheck(objective, logprobs)


def test_on_policy_the_gradient_is_the_plain_policy_gradient() -> None:
    logprobs = _log(0.1, 0.5, 0.9).requires_grad_()
    advantages = _tensor(1.0, -2.0, 0.5)
    ratio = ratio_of(logprobs, logprobs.detach())
    mean_of(surrogate(ratio, advantages, 0.2, 0.2)[0], 3).backward()
    torch.testing.assert_close(logprobs.grad, -advantages / 3)


def test_a_clipped_token_gives_no_gradient() -> None:
    logprobs = _log(2.0, 0.5).requires_grad_()
    ratio = ratio_of(logprobs, _log(1.0, 1.0))
    surrogate(ratio, _tensor(1.0, -1.0), 0.2, 0.2)[0].sum().backward()
    torch.testing.assert_close(logprobs.grad, _tensor(0.0, 0.0))


# ---- the other terms -------------------------------------------------------------------------------------


def test_a_dual_bound_limits_what_a_negative_advantage_does_by_hand() -> None:
    # A = -1: the loss is the larger of r, at most delta, and clip(r): 2 -> 1.5, 1.1 and below as before
    args = (_tensor(*RATIOS), torch.full((4,), -1.0), 0.2, 0.3, 1.5)
    losses, clipped = surrogate(*args)
    torch.testing.assert_close(losses, _tensor(0.8, 1.0, 1.1, 1.5))
    assert clipped.tolist() == [True, False, False, True]
    args = (_tensor(*RATIOS), torch.full((4,), 2.0), 0.2, 0.3, 1.5)
    torch.testing.assert_close(surrogate(*args)[0], _tensor(-1.0, -2.0, -2.2, -2.6))


def test_k1_and_k2_by_hand() -> None:
    logprobs, reference = _log(0.5, 0.25), _log(0.5, 0.5)
    torch.testing.assert_close(kl_k1(logprobs, reference), _tensor(0.0, -0.693147180560))
    torch.testing.assert_close(kl_k2(logprobs, reference), _tensor(0.0, 0.240226506959))  # (ln 2)^2 / 2


def test_k1_weighed_by_the_ratio_has_the_gradient_of_the_kl_itself() -> None:
    """Over all outcomes of one token, whose exact KL torch can differentiate."""
    logits = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.5, 0.2, -0.4], dtype=torch.float64).log_softmax(0)
    logprobs = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits, retain_graph=True)
    old = logprobs.detach()
    weighed = (old.exp() * ratio_of(logprobs, old) * kl_k1(logprobs, reference)).sum()
    alone = (old.exp() * kl_k1(logprobs, reference)).sum()
    torch.testing.assert_close(torch.autograd.grad(weighed, logits, retain_graph=True)[0], exact)
    torch.testing.assert_close(torch.autograd.grad(alone, logits)[0], torch.zeros(3, dtype=torch.float64))


PAIR = Segments.of([1, 3])


def test_means_by_hand() -> None:
    losses = _tensor(4.0, 1.0, 2.0, 6.0)
    totals, config = Totals(4, 2), ObjectiveConfig(constant_length=5)
    assert float(sequence_mean(losses, PAIR, totals, config)) == (4.0 + 3.0) / 2
    assert float(constant_length(losses, PAIR, totals, config)) == 13.0 / 10


def test_a_sequence_ratio_is_the_geometric_mean_of_its_tokens() -> None:
    ratio = sequence_ratio(_log(2.0, 1.0, 4.0, 2.0), _log(1.0, 1.0, 1.0, 1.0), PAIR)
    torch.testing.assert_close(ratio, _tensor(2.0, 2.0, 2.0, 2.0))  # (1 * 4 * 2)^(1/3) = 2


def test_cispo_caps_the_weight_and_keeps_the_gradient() -> None:
    logprobs = _log(3.0, 1.1).requires_grad_()
    ratio = ratio_of(logprobs, _log(1.0, 1.0))
    capped_surrogate(logprobs, ratio, _tensor(2.0, -1.0), ObjectiveConfig(clip_high=0.5))[0].sum().backward()
    torch.testing.assert_close(logprobs.grad, _tensor(-1.5 * 2.0, 1.1))


MISMATCHES = {
    # Ratios 2 | 1/2, 1, 4 (their product is 2), between 0.6 and 1.5
    "none": ((1.0, 1.0, 1.0, 1.0), (False, False, False, False)),
    "token_truncate": ((1.5, 0.6, 1.0, 1.5), (True, True, False, True)),
    "token_mask": ((0.0, 0.0, 1.0, 0.0), (True, True, False, True)),
    "sequence_truncate": ((1.5, 1.5, 1.5, 1.5), (True, True, True, True)),
    "sequence_mask": ((0.0, 0.0, 0.0, 0.0), (True, True, True, True)),
}


@pytest.mark.parametrize("mode", MISMATCHES)
def test_the_mismatch_by_hand(mode: str) -> None:
    weights, clipped = MISMATCHES[mode]
    ones = torch.zeros(4, dtype=torch.float64)
    found = mismatch(_log(2.0, 0.5, 1.0, 4.0), ones, PAIR, mode, 0.6, 1.5)
    torch.testing.assert_close(found.weight, _tensor(*weights))
    assert found.clipped.tolist() == list(clipped)
    torch.testing.assert_close(found.kl, _tensor(0.306852819440, 0.193147180560, 0.0, 1.613705638880))
    level = (2.0, 2.0, 2.0, 2.0) if mode.startswith("sequence") else (2.0, 0.5, 1.0, 4.0)
    torch.testing.assert_close(found.ratio, _tensor(*level))


def test_a_sequence_far_from_the_sampler_overflows_nothing() -> None:
    segments = Segments.of([2000])
    for mode, weight in (
        ("sequence_mask", 0.0),
        ("sequence_truncate", 3.0),
        ("token_truncate", 1.6487212707),
    ):
        found = mismatch(torch.zeros(2000), torch.full((2000,), -0.5), segments, mode, 0.0, 3.0)
        torch.testing.assert_close(found.weight, torch.full((2000,), weight))
        assert found.ratio.isfinite().all()


def test_the_entropy_bonus_is_a_mean_over_tokens_whatever_the_loss() -> None:
    entropy = torch.tensor([1.0, 2.0, 3.0, 6.0], requires_grad=True)
    zeros = torch.zeros(4)
    tokens = TokenBatch(zeros, zeros, zeros, None, entropy, zeros, PAIR)
    for name in LOSSES:
        config = ObjectiveConfig(loss=cast(Any, name), kl_coef=0.0, entropy_coef=0.5)
        loss, sums = policy_loss(tokens, Totals(tokens=8, sequences=4), config)
        assert float(loss.detach()) == sums.loss == -0.5 * 12 / 8
        (gradient,) = torch.autograd.grad(loss, entropy)
        torch.testing.assert_close(gradient, torch.full((4,), -0.5 / 8))
