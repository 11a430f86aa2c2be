"""The frozen data that crosses a boundary: between rooms, actors and files.

The words are those of the field (see the README's glossary): a *scenario* becomes a *prompt*, the
policy samples *completions*, each perspective returns a *judgment*, judgments become a *reward*, and
completion + judgments + reward is a *rollout*. The rollouts of one prompt are a *group*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Scale:
    """A rating scale: the whole numbers from `low` to `high`, both included."""

    low: int
    high: int

    @property
    def values(self) -> tuple[int, ...]:
        return tuple(range(self.low, self.high + 1))


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message, as chat templates know it: role is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a scenario's dialogue: role is `seeker` or `supporter`."""

    role: str
    content: str


Dialogue: TypeAlias = tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A person in trouble (or in joy): one row of a data set.

    `persona` is who the seeker is, `situation` what is happening to them (the row's `scenario`
    field), `dialogue` what they said. `language` and `culture` are optional tags.
    """

    scenario_id: str
    persona: str
    situation: str
    dialogue: Dialogue
    language: str | None = None
    culture: str | None = None

    @property
    def query(self) -> str:
        """Return what the policy answers: the first turn of the dialogue."""
        return self.dialogue[0].content


@dataclass(frozen=True, slots=True)
class Prompt:
    """A scenario as the policy sees it.

    `messages` is the chat, `prefix` the opening of the assistant's turn that is given to the policy
    (it belongs to the answer's text but is not sampled), `token_ids` the rendered whole.
    """

    scenario: Scenario
    messages: tuple[Message, ...]
    prefix: str
    token_ids: tuple[int, ...]


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters of a sampled answer, by vLLM's names: `models/vllm.py` passes each one on by its name, and
    the rollout pool fills each from the field of `rollout` of the same name (`max_tokens` from
    `max_completion_tokens`). A new parameter is a field here and one in the configuration."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Span:
    """A run of tokens by one speaker: `assistant` (sampled from the policy) or `user`.

    Args:
        role: `assistant` or `user`.
        token_ids: The tokens, exactly as they were sampled or rendered.
        logprobs: The sampler's log-probability of each token in nats; empty for a user's span.
        versions: Run-length pairs (policy version, number of tokens) in order, so that a span which saw a
            weight update has two; empty for a user's span.
    """

    role: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    versions: tuple[tuple[int, int], ...] = ()

    @property
    def sampled(self) -> bool:
        """Return whether the policy said it: what is trained on."""
        return self.role == "assistant"


@dataclass(frozen=True, slots=True)
class Completion:
    """Answer `index` of the policy to the prompt `scenario_id`: one span, or the turns of a dialogue.

    `text` is the decoded answer, the prompt's prefix included. `token_ids`, `logprobs` and `version` are
    those of the sampled spans.
    """

    scenario_id: str
    index: int
    text: str
    spans: tuple[Span, ...]
    finish_reason: FinishReason

    @property
    def rollout_id(self) -> str:
        """Return a name that no other completion of the step has."""
        return f"{self.scenario_id}/{self.index}"

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Return the tokens that the policy sampled."""
        return tuple(token for span in self.spans if span.sampled for token in span.token_ids)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Return the sampler's log-probability of each of `token_ids`, in nats."""
        return tuple(value for span in self.spans if span.sampled for value in span.logprobs)

    @property
    def version(self) -> int:
        """Return the oldest policy version that any token was sampled from."""
        return min((version for span in self.spans for version, _ in span.versions), default=0)

    @property
    def truncated(self) -> bool:
        return self.finish_reason == FinishReason.LENGTH


@dataclass(frozen=True, slots=True)
class Sections:
    """A completion split into its two parts; a part that is missing is None."""

    analysis: str | None
    response: str | None

    @property
    def valid(self) -> bool:
        return self.analysis is not None and self.response is not None


class Status(StrEnum):
    """The outcome of a judgment."""

    OK = "ok"
    UNPARSEABLE = "unparseable"  # the judge answered, but not with a score
    FAILED = "failed"  # the call failed
    SKIPPED = "skipped"  # there was nothing to judge: the section is missing


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens that an answer cost: read, of those found in a prefix cache, and written."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(
            self.prompt + other.prompt, self.cached + other.cached, self.completion + other.completion
        )


NO_TOKENS = TokenUsage()


@dataclass(frozen=True, slots=True)
class Judgment:
    """One perspective's view of one completion.

    `score` is on the perspective's own scale and None unless status is ok. It is an expectation where
    the judge's probabilities are known, and then `sampled` is the whole number the judge wrote.
    `distribution` has the probabilities over the scale given a valid answer, lowest value first,
    `entropy` theirs in nats, and `mass` the probability of a valid answer (in [0, 1]); `spread` is the
    standard deviation over several samples. `criteria` are the parts of a score that is a sum. `reason`
    is the judge's words, or why there is no score.
    """

    perspective: str
    status: Status
    score: float | None = None
    sampled: float | None = None
    mass: float | None = None
    distribution: tuple[float, ...] = ()
    entropy: float | None = None
    spread: float | None = None
    criteria: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    tries: int = 1
    latency_s: float = 0.0
    tokens: TokenUsage = NO_TOKENS
    judge: str = ""
    rubric_digest: str = ""


@dataclass(frozen=True, slots=True)
class JudgeItem:
    """A text to be judged that no policy of ours sampled: a probe, a labelled reply, a line of a file.

    `sections.analysis` or `sections.response` is None where there is none; the perspectives that read
    it are then skipped.
    """

    item_id: str
    scenario: Scenario
    sections: Sections


@dataclass(frozen=True, slots=True)
class Reward:
    """A completion's reward and what it is the sum of: value = empathy + bystander + length.

    `parts` are what it was made of, before that: each perspective's score over its scale's maximum, and
    `length`. A part whose coefficient is 0 is not among them.
    """

    value: float
    empathy: float
    bystander: float
    length: float
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A judged completion. `reward` is None when it is masked: then `masked_because` says why, and
    it neither enters its group's baseline nor gives a gradient."""

    completion: Completion
    sections: Sections
    judgments: Mapping[str, Judgment]
    reward: Reward | None
    masked_because: str = ""

    @property
    def masked(self) -> bool:
        return self.reward is None


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The rollouts of one prompt with their advantages (same order; 0 for masked ones)."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    advantages: tuple[float, ...]

    @property
    def zero_variance(self) -> bool:
        """True when the group teaches nothing: every advantage is zero."""
        return not any(self.advantages)
