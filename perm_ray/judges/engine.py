"""A judge engine: the vLLM engine that one or several judge pools ask.

Runs remotely. It renders the chat with its own model's template and answers a batch of asks; what
the answers mean is the judge's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from perm_ray.config.schema import EngineConfig
from perm_ray.data.prompts import ChatRenderer
from perm_ray.engine.vllm_engine import Generation, GenerationRequest, VLLMEngine, check_prompt_fits
from perm_ray.errors import ModelError
from perm_ray.perspectives.perspective import Ask, ConstrainedText, ExpectedDigit


@dataclass(frozen=True, slots=True)
class DigitAnswer:
    """Natural-log probabilities of the asked values, over the whole vocabulary."""

    logprobs: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """What the judge wrote after the answer prefix."""

    text: str


@dataclass(frozen=True, slots=True)
class Refused:
    """This ask could not be put to the engine; its siblings could."""

    reason: str


Answer = DigitAnswer | TextAnswer | Refused


class JudgeEngine:
    """Made an actor by `pool.py`; one vLLM engine each."""

    def __init__(self, model_dir: Path, config: EngineConfig, seed: int, exclusive: bool) -> None:
        self._config = config
        self._renderer = ChatRenderer(model_dir)
        self._engine = VLLMEngine(model_dir, config, seed=seed, exclusive=exclusive)

    async def ready(self) -> None:
        """Returns once the engine is up."""

    async def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answer `asks`, in order; they are decoded greedily and together."""
        answers: dict[int, Answer] = {}
        requests: dict[int, GenerationRequest] = {}
        for index, ask in enumerate(asks):
            try:
                requests[index] = self._request(ask)
            except ModelError as error:  # fault boundary: one text that is too long fails alone
                answers[index] = Refused(str(error))
        sent = list(requests)
        async for position, generation in self._engine.generate(list(requests.values())):
            index = sent[position]
            answers[index] = self._answer(asks[index], requests[index], generation)
        return [answers[index] for index in range(len(asks))]

    def _request(self, ask: Ask) -> GenerationRequest:
        # No text between the tags of the chat template may write such a tag itself.
        messages = [
            replace(message, content=self._renderer.without_special_tokens(message.content))
            for message in ask.prompt.messages
        ]
        prompt_ids = self._renderer.render(messages, ask.prompt.answer_prefix)
        max_tokens = 1 if isinstance(ask, ExpectedDigit) else ask.max_tokens
        check_prompt_fits(self._config, len(prompt_ids), max_tokens, "judge engine")
        match ask:
            case ExpectedDigit():
                ids = value_tokens(self._renderer, ask)
                return GenerationRequest(prompt_ids, 1, temperature=0.0, candidate_ids=ids)
            case ConstrainedText(regex=regex):
                return GenerationRequest(prompt_ids, max_tokens, temperature=0.0, regex=regex)

    def _answer(self, ask: Ask, request: GenerationRequest, generation: Generation) -> Answer:
        match ask:
            case ExpectedDigit(values=values):
                found = generation.candidate_logprobs
                pairs = zip(values, request.candidate_ids, strict=True)
                return DigitAnswer({value: found[token] for value, token in pairs if token in found})
            case ConstrainedText():
                return TextAnswer(self._renderer.decode(generation.token_ids))


def value_tokens(renderer: ChatRenderer, ask: ExpectedDigit) -> tuple[int, ...]:
    """The token that writes each value right after the answer prefix, in the prefix's context.

    Raises `ModelError` when the model's tokeniser needs another number of tokens for one.
    """
    prefix = ask.prompt.answer_prefix
    head = renderer.encode(prefix)
    whole = [renderer.encode(f"{prefix}{value}") for value in ask.values]
    for value, ids in zip(ask.values, whole, strict=True):
        if ids[:-1] != head:
            raise ModelError(
                f"Expected scores need a judge model that writes {value} after {prefix!r} as one token of "
                f"its own, found {ids} after {head}: choose another judge model."
            )
    return tuple(ids[-1] for ids in whole)
