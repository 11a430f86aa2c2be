"""`perm-ray chat RUN`: talk to a policy as it was before and after training, on a page or in the terminal.

The models are served by vLLM on loopback; the judges of the configuration read each answer.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import uvicorn
from rich.console import Console

from perm_ray.cli.pages.chat_page import chat_app
from perm_ray.config.load import load_config
from perm_ray.data.items import make_scenario
from perm_ray.errors import DataError, Interrupted
from perm_ray.judges.startup import Judges
from perm_ray.models.server import HOST, claimed_port, served
from perm_ray.runs.candidates import config_of_run, make_folder, models_and_overrides, run_of
from perm_ray.runs.chat_session import RATINGS, Chat, Pair, plan_chat
from perm_ray.runs.signals import StopSignals
from perm_ray.types import Scenario

_PARTS = ("who they are", "what happens to them", "what they say")


def run(options: argparse.Namespace) -> int:
    """Start the models and the judges, and talk until Ctrl-C."""
    models, overrides = models_and_overrides(options.arguments)
    found = run_of(models[0])
    config = load_config(options.config or config_of_run(found), overrides)
    plan = plan_chat(config, models)
    port = claimed_port(options.port)
    folder = options.out or (Path() if found is None else found.path) / "chat"
    make_folder(folder)
    judges = None if options.no_judges else Judges(config)
    with StopSignals() as stop, suppress(Interrupted), ExitStack() as stack:
        names = ", ".join(each.name for each in plan.candidates)
        print(f"Starting {names}{' and the judges' if judges else ''} ...", file=sys.stderr, flush=True)
        servers, engine = [], config.rollout.engine
        for place, each in enumerate(plan.candidates):
            log, name = folder / f"server_{place}.log", each.digest[:16]
            serving = served(each.folder, name, engine, config.run.seed, log=log, wait=False)
            servers.append(stack.enter_context(serving))
        if judges is not None:
            with stop.raised_through_ray():
                stack.enter_context(judges)
            stop.reinstall()
        for server in servers:
            server.wait_until_up(engine.start_timeout_s)
        chat = Chat(plan, servers, judges, folder / RATINGS)
        if options.terminal:
            asyncio.run(_Terminal(chat, options.hidden).talk())
        else:
            _serve(chat, f"Talk to {' and '.join(each.name for each in plan.candidates)}", port)
    return 0


def _serve(chat: Chat, title: str, port: int) -> None:
    secret = secrets.token_urlsafe(18)
    app = chat_app(chat, title, secret)
    address = f"http://{HOST}:{port}/{secret}/"
    print(f"Talk at {address}\nCtrl-C ends it.", flush=True)
    settings = uvicorn.Config(
        app,
        host=HOST,
        port=port,
        log_level="warning",
        access_log=False,  # the address is a secret
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(settings).run()


class _Terminal:
    """The same conversation in the terminal: one answer after the other, and a choice at the end."""

    def __init__(self, chat: Chat, hidden: bool) -> None:
        self._chat, self._hidden = chat, hidden
        self._console = Console(highlight=False, markup=False, soft_wrap=True)

    async def talk(self) -> None:
        """Ask for scenarios until there is no more input."""
        with suppress(EOFError):
            while True:
                scenario = self._scenario()
                try:
                    pair = self._chat.begin(scenario, self._hidden)
                except DataError as error:
                    self._console.print(str(error))
                    continue
                scores = [await self._answer(pair, side) for side in range(len(pair.order))]
                if not self._hidden:
                    self._show(scores)
                if len(pair.answers) == 2:
                    self._choose(pair)
                if self._hidden:
                    self._show(scores)

    def _scenario(self) -> Scenario:
        """Ask for a scenario's number, or for the texts of one's own."""
        scenarios = self._chat.plan.scenarios
        self._console.print(f"\nA number from 1 to {len(scenarios)} chooses a scenario, Enter writes one.")
        while (given := input("scenario> ").strip()) != "":
            if given.isdecimal() and 1 <= int(given) <= len(scenarios):
                scenario = scenarios[int(given) - 1]
                said = (scenario.persona, scenario.situation, scenario.query)
                for name, text in zip(_PARTS, said, strict=True):
                    self._console.print(f"{name}: {text}")
                return scenario
            self._console.print(f"There is no scenario {given!r}.")
        texts = []
        for name in _PARTS:
            while not (text := input(f"{name}> ").strip()):
                pass
            texts.append(text)
        return make_scenario(*texts)

    async def _answer(self, pair: Pair, side: int) -> str:
        """Print an answer as it is written; return a line of its scores."""
        name = "" if self._hidden else f", {self._chat.names(pair)[side]}"
        self._console.print(f"\n--- answer {side + 1}{name}")
        scores = ""
        async for event in self._chat.answer(pair, [side]):
            if event["event"] == "text":
                self._console.print(without_control(event["text"]), end="")
            elif event["event"] == "failed":
                self._console.print(f"\nIt broke off: {event['reason']}", end="")
            elif event["event"] == "judgments":
                scores = ", ".join(_score(name, each) for name, each in event["judgments"].items())
                reward = event["reward"]
                scores += f", reward {'none' if reward is None else f'{reward:+.3f}'}"
        self._console.print()
        return scores

    def _show(self, scores: Sequence[str]) -> None:
        self._console.print()
        for side, line in enumerate(scores):
            if line:
                self._console.print(f"answer {side + 1}: {line}")

    def _choose(self, pair: Pair) -> None:
        while (given := input("\nWhich would you rather receive, 1 or 2? (Enter: neither) ").strip()) != "":
            if given in ("1", "2"):
                try:
                    self._chat.keep(pair.pair_id, int(given) - 1)
                except DataError as error:
                    self._console.print(str(error))
                    return
                names = self._chat.names(pair)
                self._console.print(
                    f"Kept in {self._chat.ratings}: answer {given}, of {names[int(given) - 1]}."
                )
                return


def without_control(text: str) -> str:
    """Return `text` without characters that a terminal would obey."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")


def _score(name: str, judgment: Mapping[str, Any]) -> str:
    score = judgment["score"]
    return f"{name} {judgment['status'] if score is None else f'{score:.2f}'}"
