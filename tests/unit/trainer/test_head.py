"""The head in blocks of the vocabulary, against the plain logits: values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from perm_ray.trainer.head import block_columns, score

VOCABULARY, HIDDEN, TOKENS = 1000, 16, 2100  # in blocks of 448 of the vocabulary, the last one shorter


@pytest.fixture
def head() -> nn.Linear:
    assert block_columns(TOKENS, "cpu") == 448
    torch.manual_seed(0)
    return nn.Linear(HIDDEN, VOCABULARY)


def plain(
    head: nn.Linear, hidden: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    log_p = (head(hidden) / temperature).log_softmax(-1)
    return log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states (with logits of some hundreds among them), targets at both ends, weights of a loss."""
    hidden = torch.randn(TOKENS, HIDDEN)
    hidden[3] *= 300
    targets = torch.randint(VOCABULARY, (TOKENS,))
    targets[0], targets[1] = 0, VOCABULARY - 1
    return hidden, targets, torch.randn(TOKENS), torch.randn(TOKENS)


def gradients(head: nn.Linear, hidden: Tensor, loss: Tensor) -> list[Tensor]:
    assert head.bias is not None
    return list(torch.autograd.grad(loss, [hidden, head.weight, head.bias]))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_values_and_gradients_are_those_of_the_plain_logits(
    head: nn.Linear, entropy_gradient: bool, temperature: float
) -> None:
    hidden, targets, a, b = batch()
    hidden.requires_grad_()
    logprobs, entropy = score(head, hidden, targets, True, entropy_gradient, temperature)
    expected_logprobs, expected_entropy = plain(head, hidden, targets, temperature)
    torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy, atol=1e-5, rtol=1e-5)
    assert entropy.requires_grad == entropy_gradient

    loss, expected = (logprobs * a).sum(), (expected_logprobs * a).sum()
    if entropy_gradient:
        loss, expected = loss + (entropy * b).sum(), expected + (expected_entropy * b).sum()
    found = gradients(head, hidden, loss)
    for left, right in zip(found, gradients(head, hidden, expected), strict=True):
        torch.testing.assert_close(left, right, atol=1e-3, rtol=1e-4)


def test_what_is_not_asked_for_is_not_made(head: nn.Linear) -> None:
    hidden, targets, a, _ = batch()
    logprobs, entropy = score(head, hidden.requires_grad_(), targets)
    assert not entropy.any()
    head.requires_grad_(False)  # under an adapter
    logprobs, _ = score(head, hidden, targets)
    (logprobs * a).sum().backward()
    assert hidden.grad is not None
    assert head.weight.grad is None
    assert torch.equal(score(head, hidden), head(hidden))  # without targets it is the stock layer


def test_half_precision_is_as_good_as_the_plain_way(head: nn.Linear) -> None:
    """Both ways round the logits to bfloat16; against float32 this one is no further off."""
    hidden, targets, a, _ = batch()
    hidden[3] /= 300
    exact, _ = plain(head, hidden.requires_grad_(), targets)
    (exact_gradient,) = torch.autograd.grad((exact * a).sum(), [head.weight])
    half = nn.Linear(HIDDEN, VOCABULARY, dtype=torch.bfloat16)
    half.load_state_dict(head.state_dict())
    off = []
    for way in (lambda h: score(half, h, targets)[0], lambda h: plain_half(half, h, targets)):
        logprobs = way(hidden.detach().bfloat16())
        (gradient,) = torch.autograd.grad((logprobs * a).sum(), [half.weight])
        off.append(
            ((logprobs - exact).detach().abs().mean().item(), (gradient - exact_gradient).abs().max().item())
        )
    assert off[0][0] <= off[1][0] * 1.1
    assert off[0][1] <= off[1][1] * 1.1


def plain_half(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    return -nn.functional.cross_entropy(head(hidden).float(), targets, reduction="none")


def test_blocks_are_sized_for_the_device() -> None:
    """152,064 tokens of vocabulary, 7,168 of a micro-batch: hundreds of blocks would starve a GPU."""
    assert block_columns(7168, "cpu") == 256
    assert -(-152_064 // block_columns(7168, "cuda")) == 33
    assert 4 * 7168 * block_columns(7168, "cuda") <= 128 << 20  # bytes of a block in float32
