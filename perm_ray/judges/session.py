"""The judges of a run, or judges alone: built, started and asked without a policy.

`runtime.py` takes the parts from here for training; `judging` is the whole thing for the verbs of
`perm-ray judge`, which score texts that no policy of ours sampled.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from perm_ray.cluster.calls import wait_all
from perm_ray.cluster.placement import Places, check_local_resources, judge_demands, judge_role, reserve
from perm_ray.cluster.session import start_ray, stop_ray
from perm_ray.config.judges import JudgesConfig
from perm_ray.config.schema import Config
from perm_ray.data.prompts import ChatRenderer
from perm_ray.errors import ConfigError
from perm_ray.judges import modes
from perm_ray.judges.engine import value_tree
from perm_ray.judges.guard import make_fence
from perm_ray.judges.panel import JudgePanel
from perm_ray.judges.perspective import Perspective
from perm_ray.judges.pool import JudgeEnginePool, JudgePool
from perm_ray.judges.registry import build_perspective
from perm_ray.models.resolve import check_context, resolve_model
from perm_ray.runs.signals import StopSignals
from perm_ray.types import JudgeItem, Judgment, Scenario

ITEMS_AT_ONCE = 32  # what a `JudgeSession` has under way: enough to keep the engines' batches full


def build_perspectives(judges: JudgesConfig) -> dict[str, Perspective]:
    """The perspective of each pool, with its rubric. Raises `ConfigError`."""
    return {name: build_perspective(name, pool.rubric, pool.max_chars) for name, pool in judges.pools.items()}


def resolve_judges(judges: JudgesConfig) -> dict[str, Path]:
    """The model folder of each engine, found (or fetched, or converted) and checked."""
    folders = {name: resolve_model(engine.model) for name, engine in judges.engines.items()}
    for name, folder in folders.items():
        check_context(folder, judges.engines[name].max_model_len, f"judges.engines.{name}.max_model_len")
    return folders


def check_judge_prompts(
    judges: JudgesConfig,
    perspectives: Mapping[str, Perspective],
    folders: Mapping[str, Path],
    scenarios: Sequence[Scenario],
    text_tokens: int,
) -> None:
    """Refuse an engine that cannot hold rubric, scenario, a text of `text_tokens` and the answer, and one
    whose tokeniser cannot write the numbers."""
    longest = max(scenarios, key=lambda s: len(s.persona + s.situation + s.query))
    renderers = {folder: ChatRenderer(folder) for folder in set(folders.values())}
    for name, pool in judges.pools.items():
        if pool.engine not in judges.engines:
            continue  # an endpoint: how long its context is, it says itself
        renderer = renderers[folders[pool.engine]]
        question = perspectives[name].question(longest, "", make_fence(""))
        if pool.scoring.mode != "sampled":
            for ask in modes.value_asks(question, question.opening):
                value_tree(renderer, ask.prefix, ask.values)  # refuses a tokeniser that joins the two
        prompt_tokens = len(renderer.render(question.messages, question.opening))
        needed = prompt_tokens + text_tokens + modes.answer_tokens(question, pool.scoring)
        found = judges.engines[pool.engine].max_model_len
        if needed > found:
            raise ConfigError(
                f"judges.engines.{pool.engine}.max_model_len must be at least {needed}, for {name}'s "
                f"rubric, the longest scenario, a text of {text_tokens} tokens and the answer, found "
                f"{found}: raise it or shorten the rubric."
            )


@dataclass(frozen=True)
class Judges:
    """All judges, up or starting: the engines they ask, and the panel that takes texts."""

    config: JudgesConfig
    engines: JudgeEnginePool
    panel: JudgePanel

    def starting(self) -> dict[str, ray.ObjectRef]:
        """A call for each actor that returns once it is up."""
        calls = self.engines.starting()
        for pool in self.panel.pools.values():
            calls |= pool.starting()
        return calls

    @property
    def start_timeout_s(self) -> float:
        return max((engine.start_timeout_s for engine in self.config.engines.values()), default=60.0)


def start_judges(
    judges: JudgesConfig,
    perspectives: Mapping[str, Perspective],
    folders: Mapping[str, Path],
    seed: int,
    deterministic: bool,
    places: Places,
) -> Judges:
    """Create every engine and judge; returns at once (see `Judges.starting`)."""
    scheduling = {name: places.of(judge_role(name), e.replicas) for name, e in judges.engines.items()}
    engines = JudgeEnginePool(judges, folders, seed, deterministic, scheduling)
    pools = {name: JudgePool(perspectives[name], pool, judges, seed) for name, pool in judges.pools.items()}
    return Judges(judges, engines, JudgePanel(pools, perspectives, deterministic))


# ---- judges alone --------------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgeSession:
    """Judges that are up, for texts of any origin."""

    perspectives: Mapping[str, Perspective]
    judges: Judges

    def judge(self, items: Iterable[JudgeItem]) -> Iterator[tuple[JudgeItem, Mapping[str, Judgment]]]:
        """Each item with its judgments by perspective, in order, a batch of `ITEMS_AT_ONCE` at a time."""
        remaining = iter(items)
        while batch := list(itertools.islice(remaining, ITEMS_AT_ONCE)):
            for item in batch:
                self.judges.panel.submit((item.item_id, 0), item.scenario, item.sections)
            judgments = self.judges.panel.collect().judgments
            yield from ((item, judgments[item.item_id, 0]) for item in batch)


@contextmanager
def judging(config: Config) -> Iterator[JudgeSession]:
    """Start Ray and the judges of `config`, nothing else; end them on the way out, also by a signal, which
    raises `Interrupted` in the block."""
    rows = judge_demands(config.judges)
    check_local_resources(config.ray, rows)
    perspectives = build_perspectives(config.judges)
    folders = resolve_judges(config.judges)
    with StopSignals() as stop:
        try:
            start_ray(config.ray, rows)
            stop.reinstall()
            places = reserve(config.ray, rows, _say)
            seed, deterministic = config.run.seed, config.run.deterministic
            judges = start_judges(config.judges, perspectives, folders, seed, deterministic, places)
            wait_all(judges.starting(), timeout_s=judges.start_timeout_s, doing="starting")
            yield JudgeSession(perspectives, judges)
        except SystemError:  # what Ray makes of an exception that a signal raises while it waits
            stop.check()
            raise
        finally:
            stop_ray()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
