"""Compute log-probabilities from the last hidden states, without the matrix of all logits.

[tokens x vocabulary] in float32 would be the largest tensor of training: 0.8 GB for 4,096 tokens at a
vocabulary of 49,152. Here a block of the vocabulary at a time is made, used and dropped, and made again in
the backward pass. By blocks of the vocabulary and not of tokens, because the weight's gradient is then
finished block by block: nothing is added up over blocks in low precision, and there is no second copy.
`model.py` gives the policy's head this forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from perm_ray.trainer.buffer_sizes import HEAD_BLOCK_ELEMENTS


def block_columns(num_tokens: int, device_type: str) -> int:
    """Columns of the vocabulary in a block of logits for `num_tokens` tokens."""
    return max(256, HEAD_BLOCK_ELEMENTS[device_type] // max(1, num_tokens) // 64 * 64)


def score(
    head: nn.Linear,
    hidden: Tensor,
    targets: Tensor | None = None,
    with_entropy: bool = False,
    entropy_gradient: bool = False,
    temperature: float = 1.0,
) -> Any:
    """Compute each target's log-probability [C] and the entropy [C], float32, nats, of softmax(logits /
    temperature); plain logits without targets.

    `hidden` is [C, H], `targets` [C]. The entropy is zeros unless asked for, and has a gradient only if
    that is asked for too. The head's own forward, so that ZeRO-3 has its weight gathered here and in the
    backward pass.
    """
    if targets is None:
        return functional.linear(hidden, head.weight, head.bias)
    logprobs, entropy = _Score.apply(hidden, head.weight, head.bias, targets, with_entropy, temperature)
    return logprobs, entropy if entropy_gradient else entropy.detach()


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        with_entropy: bool,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """With z = logits / temperature: log p = z_target - lse, entropy = lse - sum p z. Sums run over
        blocks, scaled by the greatest z so far."""
        rows = torch.arange(len(hidden), device=hidden.device)
        greatest = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
        total, weighted, chosen = torch.zeros(3, len(hidden), device=hidden.device)
        for first, last in _blocks(hidden, len(weight)):
            logits = _logits(hidden, weight, bias, first, last, temperature)
            inside = (targets >= first) & (targets < last)
            chosen = torch.where(inside, logits[rows, (targets - first).clamp(0, last - first - 1)], chosen)
            new = torch.maximum(greatest, logits.amax(-1))
            shrink = torch.exp(greatest - new)
            powers = torch.exp(logits - new[:, None])
            total = total * shrink + powers.sum(-1)
            if with_entropy:
                weighted = weighted * shrink + (powers * logits).sum(-1)
            greatest = new
        log_total = greatest + total.log()
        entropy = log_total - weighted / total if with_entropy else torch.zeros_like(log_total)
        ctx.save_for_backward(hidden, weight, bias, targets, log_total, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return chosen - log_total, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """d log p / dz = onehot - p; d entropy / dz = -p (log p + entropy)."""
        hidden, weight, bias, targets, log_total, entropy = ctx.saved_tensors
        of_logprobs, of_entropy = gradients
        need_weight, need_bias = ctx.needs_input_grad[1:3]
        rows = torch.arange(len(hidden), device=hidden.device)
        d_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        d_weight = torch.empty_like(weight) if need_weight else None
        d_bias = torch.empty_like(bias) if need_bias else None
        for first, last in _blocks(hidden, len(weight)):
            log_p = _logits(hidden, weight, bias, first, last, ctx.temperature).sub_(log_total[:, None])
            d = torch.zeros_like(log_p)
            if of_logprobs is not None:
                d = log_p.exp().mul_(-of_logprobs[:, None])
                inside = (targets >= first) & (targets < last)
                columns = (targets - first).clamp(0, last - first - 1)
                d[rows, columns] += torch.where(inside, of_logprobs, 0.0)  # no wait for the device
            if of_entropy is not None:
                d -= (of_entropy[:, None] * log_p.exp()).mul_(log_p.add_(entropy[:, None]))
            if ctx.temperature != 1:
                d /= ctx.temperature  # from z to the logits themselves
            if d_bias is not None:
                d_bias[first:last] = d.sum(0)
            d = d.to(hidden.dtype)
            d_hidden += d @ weight[first:last]
            if d_weight is not None:
                torch.mm(d.t(), hidden, out=d_weight[first:last])
        return d_hidden.to(hidden.dtype), d_weight, d_bias, None, None, None


def _blocks(hidden: Tensor, vocabulary: int) -> Iterator[tuple[int, int]]:
    """Divide the vocabulary: (first, one past the last) of each block, sized for the device."""
    size = block_columns(len(hidden), hidden.device.type)
    for first in range(0, vocabulary, size):
        yield first, min(first + size, vocabulary)


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, first: int, last: int, temperature: float
) -> Tensor:
    part = None if bias is None else bias[first:last]
    logits = functional.linear(hidden, weight[first:last], part).float()
    return logits if temperature == 1 else logits / temperature
