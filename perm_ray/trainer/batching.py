"""What the trainer learns from, and how one step's sequences are dealt to the ranks.

The driver turns rollouts into `TrainSequence`s; `group.py` plans the step with `plan_step` and sends each
rank its share: minibatches, one optimizer update each, of micro-batches, one forward and backward pass
each. Pure: no torch, no Ray.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from perm_ray.errors import RunError


@dataclass(frozen=True, slots=True)
class TrainSequence:
    """One sampled completion after its prompt.

    `completion_ids` are exactly the ids that were sampled (text is never re-tokenised);
    `sampler_logprobs` has the sampler's log-probability of each, in nats; `advantage` is shared by
    all of the completion's tokens.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    advantage: float

    def __post_init__(self) -> None:
        prompt, completion, logprobs = map(len, (self.prompt_ids, self.completion_ids, self.sampler_logprobs))
        if not (prompt and completion and completion == logprobs):
            raise RunError(
                "A training sequence needs a prompt, a completion and one sampler log-probability for "
                f"each completion token, found {prompt}, {completion} and {logprobs} of them."
            )

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


# What an empty micro-batch computes, with weight 0, so that its rank joins every collective.
STAND_IN = TrainSequence(prompt_ids=(0,), completion_ids=(0,), sampler_logprobs=(0.0,), advantage=0.0)

MicroBatch: TypeAlias = tuple[TrainSequence, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """What a minibatch's losses are divided by: its completion tokens and its completions, on all ranks."""

    tokens: int
    sequences: int


@dataclass(frozen=True, slots=True)
class RankBatch:
    """One rank's share of a minibatch; the totals are the whole minibatch's."""

    micro_batches: tuple[MicroBatch, ...]
    totals: Totals


def plan_step(
    sequences: Sequence[TrainSequence],
    budget_tokens: int,
    num_ranks: int,
    num_minibatches: int = 1,
    shuffle_seed: str = "",
) -> list[list[RankBatch]]:
    """Deal a step's sequences: `plan[rank]` is the rank's share of each minibatch, in order.

    Several minibatches are drawn from the seed, of sizes that differ by one at most, so that a group's
    completions are spread over them; there are never more than sequences. Each minibatch is dealt to all
    ranks by `plan_micro_batches`.
    """
    count = min(num_minibatches, len(sequences))
    order = list(range(len(sequences)))
    if count > 1:
        random.Random(shuffle_seed).shuffle(order)
    plan: list[list[RankBatch]] = [[] for _ in range(num_ranks)]
    for first in range(count):
        chosen = [sequences[index] for index in order[first::count]]
        totals = Totals(sum(len(sequence.completion_ids) for sequence in chosen), len(chosen))
        shares = plan_micro_batches(list(map(len, chosen)), budget_tokens, num_ranks)
        for rank, share in zip(plan, shares, strict=True):
            rank.append(RankBatch(tuple(tuple(chosen[i] for i in indices) for indices in share), totals))
    return plan


def padding_share(plan: Sequence[Sequence[RankBatch]]) -> float:
    """The share of a step's tokens that are computed for nothing. Packed sequences need no padding: all there
    is are the stand-ins of micro-batches that only take part."""
    micro_batches = [m for rank in plan for minibatch in rank for m in minibatch.micro_batches]
    real = sum(len(sequence) for micro_batch in micro_batches for sequence in micro_batch)
    idle = sum(len(STAND_IN) for micro_batch in micro_batches if not micro_batch)
    return idle / (idle + real)


def plan_micro_batches(lengths: Sequence[int], budget_tokens: int, num_ranks: int) -> list[list[list[int]]]:
    """Deal sequences to ranks: `plan[rank][micro_batch]` is a list of indices into `lengths`.

    A micro-batch holds at most `budget_tokens` tokens; a sequence longer than that gets one of its
    own. Every rank gets the SAME number of micro-batches, at least one, because each of them is a
    collective reduction of gradients: with unequal counts ZeRO-2 aborts a rank and ZeRO-3 hangs. An
    empty list is a micro-batch of zero weight that only takes part. The plan depends on its
    arguments alone, so a resumed run sees the same one.
    """
    shares = _deal(lengths, num_ranks)
    packed = [_pack(share, lengths, budget_tokens) for share in shares]
    count = max(1, *map(len, packed))
    return [micro_batches + [[] for _ in range(count - len(micro_batches))] for micro_batches in packed]


def _longest_first(indices: Sequence[int], lengths: Sequence[int]) -> list[int]:
    return sorted(indices, key=lambda index: (-lengths[index], index))


def _deal(lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Split over ranks, each next-longest sequence to the rank with the fewest tokens so far."""
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    tokens = [0] * num_ranks
    for index in _longest_first(range(len(lengths)), lengths):
        rank = tokens.index(min(tokens))
        shares[rank].append(index)
        tokens[rank] += lengths[index]
    return shares


def _pack(indices: Sequence[int], lengths: Sequence[int], budget_tokens: int) -> list[list[int]]:
    """Fill micro-batches first-fit, longest first (never over 11/9 of the fewest possible, plus one)."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in _longest_first(indices, lengths):
        fit = next((k for k, free in enumerate(room) if free >= lengths[index]), None)
        if fit is None:
            bins.append([])
            room.append(budget_tokens)
            fit = len(bins) - 1
        bins[fit].append(index)
        room[fit] -= lengths[index]
    return bins
