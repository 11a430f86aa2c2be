"""A judge engine: the vLLM engine that one or several judge pools ask.

Runs remotely. It renders the chat with its own model's template and answers a batch of asks; what
the answers mean is the scoring mode's business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from perm_ray.config.engines import EngineModel
from perm_ray.errors import ModelError, RunError
from perm_ray.judges.asking import (
    Answer,
    EngineReply,
    Query,
    QueryFailed,
    ScoreAnswer,
    ScoreQuery,
    TextAnswer,
    TextQuery,
)
from perm_ray.models.chat import ChatRenderer
from perm_ray.models.vllm import Generation, GenerationRequest, VLLMEngine, check_prompt_fits
from perm_ray.types import NO_TOKENS, FinishReason, Message, SamplingParams, TokenUsage


class JudgeEngine:
    """Made an actor by `pool.py`; one vLLM engine each."""

    def __init__(self, model_dir: Path, config: EngineModel, seed: int, exclusive: bool) -> None:
        self._config = config
        self._renderer = ChatRenderer(model_dir, config.enable_thinking)
        self._engine = VLLMEngine(model_dir, config, seed=seed, exclusive=exclusive)

    async def ready(self) -> None:
        """Returns once the engine is up."""

    async def forget(self) -> None:
        """Drop the prefix cache, so that a measurement begins with nothing."""
        if not await self._engine.control(lambda engine: engine.reset_prefix_cache()):
            raise RunError("The prefix cache of a judge engine was dropped while it had requests.")

    async def answer(self, asks: Sequence[Query]) -> EngineReply:
        """Answer `asks`, in order; they are decoded together."""
        plans: dict[int, _Plan] = {}
        answers: dict[int, Answer] = {}
        for index, ask in enumerate(asks):
            try:
                plans[index] = self._plan(ask)
            except ModelError as error:  # fault boundary: one text that is too long fails alone
                answers[index] = QueryFailed(str(error))
        requests = [request for plan in plans.values() for request in plan.requests]
        generations: dict[int, Generation] = {}
        begun: list[float] = []
        stream = self._engine.generate(requests, started=lambda: begun.append(time.time()))
        async for position, generation in stream:
            generations[position] = generation
        in_order = iter([generations[position] for position in range(len(requests))])
        for index, plan in plans.items():
            answers[index] = self._answer(plan, [next(in_order) for _ in plan.requests])
        finished = time.time()
        return EngineReply([answers[i] for i in range(len(asks))], min([finished, *begun]), finished)

    def _plan(self, ask: Query) -> _Plan:
        prompt_ids = render_query(self._renderer, ask.messages, ask.prefix)
        match ask:
            case ScoreQuery(prefix=prefix, values=values):
                tree = value_tree(self._renderer, prefix, values)
                requests = [
                    GenerationRequest(
                        prompt_ids + path,
                        SamplingParams(max_tokens=1, temperature=0.0),
                        candidate_ids=tuple(node.children),
                    )
                    for path, node in tree.branches()
                ]
            case TextQuery(temperature=temperature):
                tree = None
                seed = ask.seed if temperature > 0 else None
                params = SamplingParams(ask.max_tokens, temperature)
                requests = [GenerationRequest(prompt_ids, params, seed=seed, regex=ask.regex)]
        for request in requests:
            check_prompt_fits(
                self._config, len(request.prompt_ids), request.sampling.max_tokens, "judge engine"
            )
        return _Plan(requests, tree)

    def _answer(self, plan: _Plan, generations: Sequence[Generation]) -> Answer:
        tokens = sum((_usage(generation) for generation in generations), NO_TOKENS)
        if plan.tree is not None:
            found = [generation.candidate_logprobs for generation in generations]
            return ScoreAnswer(plan.tree.logprobs(found), tokens)
        (generation,) = generations
        text = self._renderer.decode(generation.token_ids)
        return TextAnswer(text, generation.finish_reason == FinishReason.LENGTH, tokens)


def render_query(renderer: ChatRenderer, messages: Sequence[Message], prefix: str) -> tuple[int, ...]:
    """Return the tokens of a query. No text in it may write a tag of the chat template itself."""
    safe = [replace(m, content=renderer.without_special_tokens(m.content)) for m in messages]
    return renderer.render(safe, prefix)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The requests of one query to vLLM; `tree` says how to read the answers when a number was asked for."""

    requests: Sequence[GenerationRequest]
    tree: ValueTree | None


def _usage(generation: Generation) -> TokenUsage:
    return TokenUsage(generation.prompt_tokens, generation.cached_tokens, len(generation.token_ids))


# ---- the probability of a number ---------------------------------------------------------------


@dataclass
class ValueTree:
    """The numbers of a scale as a tokeniser writes them: a node for each token, `value` where one ends.

    With a token for each digit, 1 is a number and also how 10 begins; with a token for each number the
    tree is one level deep. One request for each node with children then gives every number's probability.
    """

    children: dict[int, ValueTree]
    value: int | None = None

    def branches(self, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], ValueTree]]:
        """Yield every node with children, parents first, and the tokens that lead to it."""
        if self.children:
            yield path, self
        for token, child in self.children.items():
            yield from child.branches((*path, token))

    def logprobs(self, found: Sequence[Mapping[int, float]]) -> dict[int, float]:
        """Return the natural-log probability of each number.

        `found` has, for each of `branches()`, the log-probabilities of the next tokens. Where a number ends
        and another goes on, ending is what no further digit of the scale takes.
        """
        result: dict[int, float] = {}
        nexts = iter(found)

        def visit(node: ValueTree, logprob: float) -> None:
            following = next(nexts) if node.children else {}
            if node.value is not None:
                going_on = math.fsum(math.exp(following.get(token, -math.inf)) for token in node.children)
                stop = math.log1p(-going_on) if going_on < 1.0 else -math.inf
                result[node.value] = logprob + stop
            for token, child in node.children.items():
                visit(child, logprob + following.get(token, -math.inf))

        visit(self, 0.0)
        return result


def value_tree(renderer: ChatRenderer, prefix: str, values: Sequence[int]) -> ValueTree:
    """Return the tree of `values` right after `prefix`, in the prefix's context.

    Raises `ModelError` when the tokeniser joins a number with the prefix's last letters.
    """
    head = renderer.encode(prefix)
    root = ValueTree({})
    for value in values:
        ids = renderer.encode(f"{prefix}{value}")
        if ids[: len(head)] != head or len(ids) == len(head):
            raise ModelError(
                f"A judge model must write {value} after {prefix!r} as tokens of its own, found {ids} after "
                f"{head}: choose another judge model, or scoring.mode: sampled."
            )
        node = root
        for token in ids[len(head) :]:
            node = node.children.setdefault(token, ValueTree({}))
        node.value = value
    return root
