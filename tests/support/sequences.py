"""Random training sequences in groups, as a step of rollouts has them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from perm_ray.trainer.batching import TrainSequence
from perm_ray.types import Span


def one_turn(
    prompt: Sequence[int], completion: Sequence[int], logprobs: Sequence[float], advantage: float
) -> TrainSequence:
    """The sequence of a prompt and one sampled answer."""
    return TrainSequence.of(prompt, [Span("assistant", tuple(completion), tuple(logprobs))], advantage)


def random_sequences(
    rng: random.Random,
    count: int,
    *,
    per_prompt: int,
    vocabulary: Sequence[int],
    prompt_tokens: tuple[int, int],
    completion_tokens: tuple[int, int],
    logprob: float,
) -> Iterator[TrainSequence]:
    """`count` completions, `per_prompt` of each prompt, of lengths between bounds that are both included.

    The sampler's log-probability is `logprob` for every token; advantages are drawn from a normal
    distribution. One sequence at a time is drawn, when it is asked for.
    """
    prompt: tuple[int, ...] = ()
    for index in range(count):
        if index % per_prompt == 0:
            prompt = tuple(rng.choices(vocabulary, k=rng.randint(*prompt_tokens)))
        completion = tuple(rng.choices(vocabulary, k=rng.randint(*completion_tokens)))
        yield one_turn(prompt, completion, (logprob,) * len(completion), rng.gauss(0, 1))
