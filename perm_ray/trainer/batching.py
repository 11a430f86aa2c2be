"""What the trainer learns from, and how one step's sequences are dealt to the ranks.

The driver turns rollouts into `TrainSequence`s; `group.py` plans the step with `plan_micro_batches`
and sends each rank its share. Pure: no torch, no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
