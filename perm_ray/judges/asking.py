"""Define what a judge engine can be asked, and what it answers: the border between scoring and engines.

A perspective asks a `Question` about one text. A scoring mode (`modes.py`) turns it into queries of two
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
        """Return the scale of the score: of the sum, where there are criteria."""
        parts = max(1, len(self.criteria))
        return Scale(parts * self.scale.low, parts * self.scale.high)


@dataclass(frozen=True, slots=True)
class ScoreQuery:
    """Ask how probable each of `values` (whole numbers, 0 or more) is as the answer after `prefix`.

    `prefix` is the beginning of the judge's own turn. An engine that cannot begin it asks for the
    number alone instead.
    """

    messages: tuple[Message, ...]
    prefix: str
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextQuery:
    """Ask what the judge writes after `prefix`.

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


Query = ScoreQuery | TextQuery


@dataclass(frozen=True, slots=True)
class ScoreAnswer:
    """Natural-log probabilities of the asked values, out of everything the judge could have said.

    A number of several tokens has the probability of all of them and of not going on with another
    digit. A value that the engine cannot see has -inf.
    """

    logprobs: Mapping[int, float]
    tokens: TokenUsage = NO_TOKENS


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """The text that the judge wrote after the prefix; `cut` when its last token or a filter cut it off."""

    text: str
    cut: bool = False
    tokens: TokenUsage = NO_TOKENS


class QueryFailed(Exception):
    """A query that got no answer, and why. Engines return it in the place of an answer, so that the other
    queries of a batch keep theirs; scoring modes raise it."""

    def __init__(self, reason: str, tokens: TokenUsage = NO_TOKENS) -> None:
        super().__init__(reason, tokens)  # both in args, so that it pickles whole
        self.reason = reason
        self.tokens = tokens

    def __str__(self) -> str:
        return self.reason


Answer = ScoreAnswer | TextAnswer | QueryFailed


@dataclass(frozen=True, slots=True)
class EngineReply:
    """Answers in the order of their queries, and when the engine worked on them: from `started_at` to
    `finished_at`, in seconds since the epoch by the engine's own clock. Time in a queue is not work."""

    answers: Sequence[Answer]
    started_at: float
    finished_at: float
