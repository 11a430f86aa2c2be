"""Talk to models: each answers a scenario as it would in training, streamed, and the judges read the answers.

A pair of answers of which a person prefers one becomes a row that `judge train` and `judge calibrate` read.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai

from perm_ray.config.schema import Config
from perm_ray.data.documents import Document
from perm_ray.data.prompts import build_prompts, is_empty, load_template, split_sections
from perm_ray.data.scenarios import load_scenarios
from perm_ray.errors import ConfigError, DataError
from perm_ray.files import append_row, json_line
from perm_ray.judges.perspective import Perspective
from perm_ray.judges.startup import Judges
from perm_ray.models.chat import ChatRenderer
from perm_ray.models.resolve import check_context
from perm_ray.models.server import Served
from perm_ray.runs.candidates import Candidate, find_candidates
from perm_ray.tracking.samples import judgment_row
from perm_ray.types import JudgeItem, Prompt, Scenario, Sections

RATINGS = "ratings.jsonl"
_KEPT_PAIRS = 200  # in memory: whoever rates an older one is told to ask again
Event = dict[str, Any]  # `event` is text, answer, judgments or failed; `side` is the answer's place


@dataclass(frozen=True)
class ChatPlan:
    """One or two models with everything checked; `scenarios` are those that can be chosen."""

    config: Config
    candidates: Sequence[Candidate]
    renderers: Sequence[ChatRenderer]
    template: Document
    scenarios: Sequence[Scenario]

    def prompts(self, scenario: Scenario) -> list[Prompt]:
        """Return the scenario as each model reads it in training. Raises `DataError` when it is too long."""
        prompt = self.config.prompt
        return [
            build_prompts([scenario], self.template, prompt.prefix, renderer, prompt.max_tokens)[0]
            for renderer in self.renderers
        ]


def plan_chat(config: Config, models: Sequence[str]) -> ChatPlan:
    """Find the models and check everything that can be checked before anything starts.

    Args:
        config: Its held-out data are the scenarios to choose from; its judges read the answers.
        models: A run directory, which stands for its policy before and after training; or one or two models.

    Raises:
        UserError: Something cannot be used as it is.
    """
    candidates = find_candidates(models, config.models)
    if len(candidates) > 2:
        raise ConfigError(
            f"A chat is with one model or two, found {len(candidates)}: name a run directory, which is two, "
            "or two models."
        )
    length = config.rollout.engine.max_model_len
    for each in candidates:
        check_context(each.folder, length, "rollout.engine.max_model_len")
    renderers = [ChatRenderer(each.folder, config.prompt.enable_thinking) for each in candidates]
    template, scenarios = load_template(config.prompt.template), load_scenarios(config.data.heldout)
    return ChatPlan(config, candidates, renderers, template, scenarios)


@dataclass
class Pair:
    """The answers to one scenario. `order` says which model stands at which side; `answers` has what is
    finished, and `preferred` the side that a person chose."""

    pair_id: str
    scenario: Scenario
    prompts: Sequence[Prompt]
    order: Sequence[int]
    answers: dict[int, Sections] = field(default_factory=dict)
    preferred: int | None = None


class Chat:
    """A conversation with models that are served, and with judges where there are any.

    Args:
        plan: From `plan_chat`.
        servers: Of its candidates, in order.
        judges: Entered; None leaves the answers unjudged.
        ratings: The JSONL file to which preferences are appended.
    """

    def __init__(
        self, plan: ChatPlan, servers: Sequence[Served], judges: Judges | None, ratings: Path
    ) -> None:
        self.plan, self.ratings, self._judges = plan, ratings, judges
        self._servers = servers
        self._pairs: dict[str, Pair] = {}
        self._judging = threading.Lock()

    def begin(self, scenario: Scenario, shuffled: bool) -> Pair:
        """Return a pair that is yet to be answered, its sides in random order where that is wanted.

        Raises:
            DataError: The scenario is longer than a prompt may be.
        """
        prompts = self.plan.prompts(scenario)
        order = list(range(len(prompts)))
        if shuffled:
            random.shuffle(order)
        pair = Pair(secrets.token_hex(8), scenario, prompts, order)
        self._pairs[pair.pair_id] = pair
        while len(self._pairs) > _KEPT_PAIRS:
            del self._pairs[next(iter(self._pairs))]
        return pair

    def names(self, pair: Pair) -> list[str]:
        """Return the models' names, in the order of the sides."""
        return [self.plan.candidates[place].name for place in pair.order]

    @property
    def perspectives(self) -> Mapping[str, Perspective]:
        """Return those from which answers are judged; none where nobody judges."""
        return self._judges.perspectives if self._judges is not None else {}

    async def answer(self, pair: Pair, sides: Sequence[int] = (0, 1)) -> AsyncGenerator[Event, None]:
        """Yield what the models write as they write it, each whole answer, and what the judges say of it.

        A side that fails yields `failed` with the reason; the other side goes on. Only those of `sides`
        that the pair has.
        """
        events: asyncio.Queue[Event | None] = asyncio.Queue()

        async def all_sides() -> None:
            try:
                await asyncio.gather(*(self._side(pair, side, events) for side in sides[: len(pair.order)]))
            finally:
                events.put_nowait(None)

        task = asyncio.create_task(all_sides())
        try:
            while (event := await events.get()) is not None:
                yield event
            await task
        finally:  # also when the reader has gone: the servers need not write on
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _side(self, pair: Pair, side: int, events: asyncio.Queue[Event | None]) -> None:
        try:
            text = await self._stream(pair, side, events)
        except openai.OpenAIError as error:  # the server ended, or refused
            events.put_nowait({"event": "failed", "side": side, "reason": " ".join(str(error).split())[:500]})
            return
        sections = split_sections(text)
        rest = text.removeprefix(pair.prompts[pair.order[side]].prefix)
        pair.answers[side] = sections if sections.response else Sections(None, rest)
        found = {"analysis": sections.analysis, "response": sections.response}
        events.put_nowait({"event": "answer", "side": side, "text": text, **found})
        if self._judges is not None:
            judged = await asyncio.to_thread(self._judge, self._judges, pair, side, sections)
            events.put_nowait({"event": "judgments", "side": side, **judged})

    async def _stream(self, pair: Pair, side: int, events: asyncio.Queue[Event | None]) -> str:
        place, rollout = pair.order[side], self.plan.config.rollout
        server, prompt = self._servers[place], pair.prompts[place]
        text = prompt.prefix
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key=server.key, max_retries=0) as client:
            stream = await client.completions.create(
                model=server.name,
                prompt=list(prompt.token_ids),
                max_tokens=rollout.max_completion_tokens,
                temperature=rollout.temperature,
                top_p=rollout.top_p,
                stream=True,
            )
            async with stream:
                async for chunk in stream:
                    if chunk.choices and (piece := chunk.choices[0].text):
                        text += piece
                        events.put_nowait({"event": "text", "side": side, "text": piece})
        return text

    def _judge(self, judges: Judges, pair: Pair, side: int, sections: Sections) -> Mapping[str, Any]:
        """Have the answer judged, in a thread: judges are asked through Ray, which blocks."""
        item = JudgeItem(f"{pair.pair_id}/{side}", pair.scenario, sections)
        with self._judging:
            verdict = judges.verdict(item)
        rows = {name: judgment_row(judgment) for name, judgment in verdict.judgments.items()}
        value = verdict.reward.value if verdict.reward else None
        return {"judgments": rows, "reward": value, "masked_because": verdict.masked_because}

    def keep(self, pair_id: str, preferred: int) -> Pair:
        """Append the preference to the file of ratings, once: another click of the same changes nothing.

        Raises:
            DataError: There is no such pair, it cannot be a rating, or another side was chosen before.
        """
        pair = self._pairs.get(pair_id)
        if pair is None:
            raise DataError("This pair is no longer known: ask again, and choose then.")
        if pair.preferred == preferred:
            return pair
        if pair.preferred is not None:
            raise DataError(f"This pair is kept already, with answer {pair.preferred + 1} as the better one.")
        if len(pair.order) != 2 or len(pair.answers) != 2 or preferred not in (0, 1):
            raise DataError("A rating needs two answers that are complete: wait for both.")
        if any(is_empty(sections.response or "") for sections in pair.answers.values()):
            raise DataError("An answer without a word to read cannot be rated: ask again.")
        better, worse = (self._rated(pair, side) for side in (preferred, 1 - preferred))
        scenario = pair.scenario
        row = {
            "id": pair_id,
            "persona": scenario.persona,
            "scenario": scenario.situation,
            "query": scenario.query,
            "language": scenario.language,
            "culture": scenario.culture,
            "perspective": "reception",
            "better": better,
            "worse": worse,
            "rated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            append_row(self.ratings, json_line(row))
        except OSError as error:
            raise DataError(
                f"The rating could not be written to {self.ratings} ({error.strerror})."
            ) from error
        pair.preferred = preferred
        return pair

    def _rated(self, pair: Pair, side: int) -> dict[str, str | None]:
        sections = pair.answers[side]
        return {
            "response": sections.response,
            "analysis": sections.analysis,
            "model": self.names(pair)[side],
        }
