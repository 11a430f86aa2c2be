"""What can be asked of a judge engine, and what it answers: the border between scoring and engines.

A perspective asks a `Question` about one text. A scoring mode (`modes.py`) turns it into asks of two
kinds, which every judge engine understands, whatever it is: an in-cluster vLLM engine
(`judges/engine.py`) or somebody's API (`judges/endpoint_engine.py`). Pure data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perm_ray.types import NO_TOKENS, Message, Scale, TokenUsage


@dataclass(frozen=True, slots=True)
class Question:
    """One perspective's question about one text.

    `messages` is the chat up to the judge's turn; `opening` the words of that turn that lead to the
    number, its trailing space included (the common tokenisers then write the number by itself).
    `scale` is that of each number. With `criteria` there is one number for each of them, and the score
    is their sum; without, one number in all.
    """

    messages: tuple[Message, ...]
    opening: str
    scale: Scale
    criteria: tuple[str, ...] = ()

    @property
    def score_scale(self) -> Scale:
        """The scale of the score: of the sum, where there are criteria."""
        parts = max(1, len(self.criteria))
        return Scale(parts * self.scale.low, parts * self.scale.high)


@dataclass(frozen=True, slots=True)
class ValueAsk:
    """How probable is each of `values` (whole numbers, 0 or more) as the answer after `prefix`?

    `prefix` is the beginning of the judge's own turn. An engine that cannot begin it asks for the
    number alone instead.
    """

    messages: tuple[Message, ...]
    prefix: str
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextAsk:
    """What does the judge write after `prefix`?

    `regex` (for the text after the prefix) and `json_schema` are two ways to hold it to a form; an
    engine uses the one it can. `temperature` 0 is greedy; `seed` makes a sample repeatable where the
    engine can.
    """

    messages: tuple[Message, ...]
    prefix: str
    max_tokens: int
    regex: str | None = None
    json_schema: Mapping[str, object] | None = None
    temperature: float = 0.0
    seed: int | None = None


Ask = ValueAsk | TextAsk


@dataclass(frozen=True, slots=True)
class ValueAnswer:
    """Natural-log probabilities of the asked values, out of everything the judge could have said.

    A number of several tokens has the probability of all of them and of not going on with another
    digit. A value that the engine cannot see has -inf.
    """

    logprobs: Mapping[int, float]
    tokens: TokenUsage = NO_TOKENS


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """What the judge wrote after the prefix; `cut` when it ran out of tokens."""

    text: str
    cut: bool = False
    tokens: TokenUsage = NO_TOKENS


@dataclass(frozen=True, slots=True)
class Refused:
    """This ask got no answer, and why; its siblings may have one."""

    reason: str
    tokens: TokenUsage = NO_TOKENS


Answer = ValueAnswer | TextAnswer | Refused


@dataclass(frozen=True, slots=True)
class EngineReply:
    """Answers in the order of their asks, and when the engine worked on them: from `started_at` to
    `finished_at`, in seconds since the epoch by the engine's own clock. Time in a queue is not work."""

    answers: Sequence[Answer]
    started_at: float
    finished_at: float
