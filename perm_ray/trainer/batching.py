"""Train sequences, and the plan that deals one step's sequences to the ranks.

The driver turns rollouts into `TrainSequence`s; `group.py` plans the step with `plan_step` and sends each
rank its share: minibatches, one optimizer update each, of micro-batches, one forward and backward pass
each. Completions of one prompt that meet in a micro-batch are trained after one copy of it. Pure: no torch,
no Ray.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from perm_ray.errors import RunError
from perm_ray.types import Span


@dataclass(frozen=True, slots=True)
class TrainSequence:
    """A prompt and what follows it, with a mask over its tokens.

    Tokens before the first trained one are the prompt. Tokens after it that are not trained (a user's turn)
    are context only: they have no loss and no log-probability, and no total counts them.

    Args:
        token_ids: Exactly the ids that were sampled or rendered (text is never re-tokenised).
        trained: Whether each of them is learned from.
        logprobs: The sampler's log-probability of each trained token, in nats.
        advantage: That of the whole sequence, shared by all its trained tokens.
        soft_targets: For supervised objectives, pairs (token id, probability) in the stead of each trained
            token; empty when the tokens themselves are the targets.
        shared_prompt: Tokens at the beginning that count as the prompt, where it is shorter than all that
            comes before the first trained token: sequences that begin alike share so much. 0 takes all.
        pair: For learning from preferences, +k for the better text of pair k of a batch and -k for the worse.
    """

    token_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    logprobs: tuple[float, ...]
    advantage: float
    soft_targets: tuple[tuple[tuple[int, float], ...], ...] = ()
    shared_prompt: int = 0
    pair: int = 0

    def __post_init__(self) -> None:
        trained = sum(self.trained)
        aligned = len(self.trained) == len(self.token_ids) and len(self.logprobs) == trained
        if not (aligned and trained and not self.trained[0]):
            raise RunError(
                "A training sequence needs a prompt, a trained token after it and one sampler log-probability"
                f" for each trained token, found {len(self.token_ids)} tokens, a mask of {len(self.trained)} "
                f"with {trained} trained, and {len(self.logprobs)} log-probabilities."
            )
        if self.soft_targets and len(self.soft_targets) != trained:
            raise RunError(
                f"A training sequence with soft targets needs one for each of its {trained} trained tokens, "
                f"found {len(self.soft_targets)}."
            )

    @classmethod
    def of(cls, prompt_ids: Sequence[int], spans: Sequence[Span], advantage: float) -> TrainSequence:
        """Return the sequence of a rollout: its prompt, then its spans, of which the sampled ones are
        trained.

        A user's turn at the end is left out: nothing is learned from it.
        """
        last = max((index for index, span in enumerate(spans) if span.sampled), default=-1)
        token_ids, trained, logprobs = list(prompt_ids), [False] * len(prompt_ids), []
        for span in spans[: last + 1]:
            token_ids += span.token_ids
            trained += [span.sampled] * len(span.token_ids)
            logprobs += span.logprobs if span.sampled else ()
        return cls(tuple(token_ids), tuple(trained), tuple(logprobs), advantage)

    @property
    def prompt_length(self) -> int:
        """Return tokens before the first trained one, or the part of them that sequences share."""
        return self.shared_prompt or self.trained.index(True)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.token_ids[: self.prompt_length]

    @property
    def continuation_length(self) -> int:
        """Return tokens after the prompt, context between trained ones included."""
        return len(self.token_ids) - self.prompt_length

    @property
    def num_trained(self) -> int:
        return len(self.logprobs)

    def __len__(self) -> int:
        return len(self.token_ids)


# What is learned from: samples with advantages, examples, or pairs of a better and a worse text.
Task: TypeAlias = Literal["policy", "supervised", "preference"]

# Computed by an empty micro-batch, with weight 0, so that its rank joins every collective.
STAND_IN = TrainSequence(token_ids=(0, 0), trained=(False, True), logprobs=(0.0,), advantage=0.0)

# Completions that are trained after one copy of their common prompt; or one after its own.
SharedPrompt: TypeAlias = tuple[TrainSequence, ...]
MicroBatch: TypeAlias = tuple[SharedPrompt, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """Divisors of a minibatch's losses: its trained tokens and its sequences, on all ranks."""

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
    share_prompts: bool = True,
) -> list[list[RankBatch]]:
    """Deal a step's sequences: `plan[rank]` is the rank's share of each minibatch, in order.

    Several minibatches are drawn from the seed, of sizes that differ by one at most, so that a group's
    completions are spread over them; there are never more than sequences. Each minibatch is dealt to all
    ranks by `plan_micro_batches`. With `share_prompts` its completions of one prompt stay together, as far
    as they fit into a micro-batch and leave every rank its part.
    """
    count = min(num_minibatches, len(sequences))
    order = list(range(len(sequences)))
    if count > 1:
        random.Random(shuffle_seed).shuffle(order)
    plan: list[list[RankBatch]] = [[] for _ in range(num_ranks)]
    for first in range(count):
        chosen = [sequences[index] for index in order[first::count]]
        totals = Totals(sum(sequence.num_trained for sequence in chosen), len(chosen))
        units = _together(chosen, budget_tokens, num_ranks) if share_prompts else [(s,) for s in chosen]
        shares = plan_micro_batches(list(map(tokens_of, units)), budget_tokens, num_ranks)
        for rank, share in zip(plan, shares, strict=True):
            rank.append(RankBatch(tuple(tuple(units[i] for i in indices) for indices in share), totals))
    return plan


def tokens_of(unit: SharedPrompt) -> int:
    """Count the tokens that are computed for it: the prompt once, and every continuation."""
    return unit[0].prompt_length + sum(sequence.continuation_length for sequence in unit)


def _together(sequences: Sequence[TrainSequence], budget_tokens: int, num_ranks: int) -> list[SharedPrompt]:
    """Return each prompt's completions in as few units as fit the budget, none more than a rank's part of
    all."""
    groups: dict[tuple[int, ...], list[TrainSequence]] = {}
    for sequence in sequences:
        groups.setdefault(sequence.prompt_ids, []).append(sequence)
    total = sum(tokens_of(tuple(group)) for group in groups.values())
    largest = min(budget_tokens, -(-total // num_ranks))
    units = []
    for prompt, group in groups.items():
        lengths = [sequence.continuation_length for sequence in group]
        for indices in _pack(range(len(group)), lengths, largest - len(prompt)):
            units.append(tuple(group[index] for index in sorted(indices)))
    return units


def plan_metrics(plan: Sequence[Sequence[RankBatch]]) -> dict[str, float]:
    """Return the metrics of what a step computes (`trainer/...`).

    `padding_share` is of tokens that are computed for nothing: packed sequences need no padding, all there is
    are the stand-ins of micro-batches that only take part. `shared_share` is of the sequences' tokens, those
    of prompts that were there already and were not computed again.
    """
    micro_batches = [m for rank in plan for minibatch in rank for m in minibatch.micro_batches]
    units = [unit for micro_batch in micro_batches for unit in micro_batch]
    computed = sum(map(tokens_of, units))
    idle = sum(len(STAND_IN) for micro_batch in micro_batches if not micro_batch)
    sequences = sum(len(sequence) for unit in units for sequence in unit)
    return {
        "trainer/padding_share": idle / (idle + computed),
        "trainer/shared_share": 1 - computed / sequences,
    }


def plan_micro_batches(lengths: Sequence[int], budget_tokens: int, num_ranks: int) -> list[list[list[int]]]:
    """Deal what is computed together to ranks: `plan[rank][micro_batch]` is a list of indices into `lengths`.

    A micro-batch holds at most `budget_tokens` tokens; what is longer than that gets one of its
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
    """Split over ranks, each next-longest to the rank with the fewest tokens so far."""
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
