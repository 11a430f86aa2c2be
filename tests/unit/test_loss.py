"""GRPO's objective against values worked by hand, against numpy, and its gradient by differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from perm_ray.trainer.loss import dapo, is_clipped, kl_k3, policy_loss


def _log(*ratios: float) -> Tensor:
    return torch.tensor(ratios, dtype=torch.float64).log()


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


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
    args = (_log(*RATIOS), torch.zeros(4, dtype=torch.float64), torch.full((4,), advantage), 0.2, 0.3)
    torch.testing.assert_close(policy_loss(*args), _tensor(*losses))
    assert is_clipped(*args).tolist() == list(clipped)


def test_kl_by_hand() -> None:
    # reference / policy = 1, 2, 1/2: x - ln x - 1 = 0, 1 - ln 2, ln 2 - 1/2
    estimate = kl_k3(_log(0.5, 0.25, 0.5), _log(0.5, 0.5, 0.25))
    torch.testing.assert_close(estimate, _tensor(0.0, 0.306852819440, 0.193147180560))


def test_dapo_weighs_each_token_of_the_step_the_same() -> None:
    step = _tensor(3.0, 1.0, 2.0, 6.0)
    halves = dapo(step[:1], 4) + dapo(step[1:], 4)
    assert float(halves) == pytest.approx(float(dapo(step, 4))) == 3.0


def test_agrees_with_numpy_on_random_tokens() -> None:
    rng = np.random.default_rng(7)
    new, old, reference = (rng.normal(-2, 0.3, 500) for _ in range(3))
    advantages = rng.normal(0, 1, 500)
    low, high, kl_coef = 0.2, 0.28, 0.01

    ratio = np.exp(new - old)
    surrogate = np.where(
        advantages >= 0,
        np.minimum(ratio, 1 + high) * advantages,
        np.maximum(ratio, 1 - low) * advantages,
    )
    kl = np.exp(reference) / np.exp(new) - np.log(np.exp(reference) / np.exp(new)) - 1
    expected = np.mean(-surrogate + kl_coef * kl)

    logprobs, old_logprobs, reference_logprobs, a = map(torch.from_numpy, (new, old, reference, advantages))
    losses = policy_loss(logprobs, old_logprobs, a, low, high) + kl_coef * kl_k3(logprobs, reference_logprobs)
    assert float(dapo(losses, 500)) == pytest.approx(expected, abs=1e-12)


def test_the_gradient_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    logprobs = torch.randn(40, dtype=torch.float64, requires_grad=True)
    old, reference, advantages = torch.randn(3, 40, dtype=torch.float64)

    def objective(x: Tensor) -> Tensor:
        return dapo(policy_loss(x, old, advantages, 0.2, 0.2) + 0.01 * kl_k3(x, reference), 40)

    assert torch.autograd.gradcheck(objective, logprobs)


def test_on_policy_the_gradient_is_the_plain_policy_gradient() -> None:
    logprobs = _log(0.1, 0.5, 0.9).requires_grad_()
    advantages = _tensor(1.0, -2.0, 0.5)
    dapo(policy_loss(logprobs, logprobs.detach(), advantages, 0.2, 0.2), 3).backward()
    torch.testing.assert_close(logprobs.grad, -advantages / 3)


def test_a_clipped_token_gives_no_gradient() -> None:
    logprobs = _log(2.0, 0.5).requires_grad_()
    policy_loss(logprobs, _log(1.0, 1.0), _tensor(1.0, -1.0), 0.2, 0.2).sum().backward()
    torch.testing.assert_close(logprobs.grad, _tensor(0.0, 0.0))
