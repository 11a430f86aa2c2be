"""Build and start the judges of a run, or judges alone.

`runs/run.py` takes the parts from here for training; `Judges` is the whole thing for everybody who scores
texts that no policy of ours sampled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from perm_ray.cluster.calls import wait_all
from perm_ray.cluster.placement import Places, check_local_resources, judge_demands, judge_role
from perm_ray.cluster.session import cluster
from perm_ray.config.judges import JudgesConfig
from perm_ray.config.load import load_config
from perm_ray.config.schema import Config
from perm_ray.data.items import make_scenario
from perm_ray.errors import ConfigError, RunError
from perm_ray.judges import modes
from perm_ray.judges.engine import value_tree
from perm_ray.judges.guard import make_fence
from perm_ray.judges.panel import JudgePanel
from perm_ray.judges.perspective import Perspective, load_perspective
from perm_ray.judges.pool import JudgeEnginePool, JudgePool
from perm_ray.models.chat import ChatRenderer
from perm_ray.models.resolve import check_context, resolve_model
from perm_ray.rewards.reward import check_perspectives, reward_of_asked
from perm_ray.types import JudgeItem, Judgment, Reward, Scenario, Sections


def build_perspectives(judges: JudgesConfig) -> dict[str, Perspective]:
    """Return the perspective of each pool, with its rubric. Raises `ConfigError`."""
    return {name: load_perspective(name, pool.rubric, pool.max_chars) for name, pool in judges.pools.items()}


def resolve_judges(config: Config) -> dict[str, Path]:
    """Return the model folder of each engine, found (or fetched, or converted) and checked."""
    engines = config.judge_engines
    folders = {name: resolve_model(engine.model, engine.adapter) for name, engine in engines.items()}
    for name, folder in folders.items():
        check_context(folder, engines[name].max_model_len, f"models.{name}.max_model_len")
    return folders


def check_judge_prompts(
    config: Config,
    perspectives: Mapping[str, Perspective],
    folders: Mapping[str, Path],
    scenarios: Sequence[Scenario],
    text_tokens: int,
) -> None:
    """Refuse an engine that cannot hold rubric, scenario, a text of `text_tokens` and the answer, and one
    whose tokeniser cannot write the numbers."""
    longest = max(scenarios, key=lambda s: len(s.persona + s.situation + s.query))
    engines = config.judge_engines
    renderers = {name: ChatRenderer(path, engines[name].enable_thinking) for name, path in folders.items()}
    for name, pool in (*config.judges.pools.items(), *config.grading_pools.items()):
        engine = config.judge_engines.get(pool.model)
        if engine is None:
            continue  # an endpoint: how long its context is, it says itself
        renderer = renderers[pool.model]
        question = perspectives[name].question(longest, "", make_fence(""))
        if pool.scoring.mode != "sampled":
            for each in modes.score_queries(question, question.opening):
                value_tree(renderer, each.prefix, each.values)  # refuses a tokeniser that joins the two
        prompt_tokens = len(renderer.render(question.messages, question.opening))
        needed = prompt_tokens + text_tokens + modes.answer_tokens(question, pool.scoring)
        if needed > engine.max_model_len:
            raise ConfigError(
                f"models.{pool.model}.max_model_len must be at least {needed}, for {name}'s "
                f"rubric, the longest scenario, a text of {text_tokens} tokens and the answer, found "
                f"{engine.max_model_len}: raise it or shorten the rubric."
            )


def start_judges(
    config: Config,
    perspectives: Mapping[str, Perspective],
    folders: Mapping[str, Path],
    seed: int,
    deterministic: bool,
    places: Places,
) -> JudgePanel:
    """Create every engine and judge; return at once (`JudgePanel.starting` says when they are up)."""
    asked = config.judge_engines
    scheduling = {name: places.of(judge_role(name), engine.replicas) for name, engine in asked.items()}
    engines = JudgeEnginePool({**asked, **config.judge_endpoints}, folders, seed, deterministic, scheduling)
    pools = {
        name: JudgePool(perspectives[name], pool, config, seed) for name, pool in config.judges.pools.items()
    }
    timeouts = [engine.start_timeout_s for engine in asked.values()]
    return JudgePanel(pools, perspectives, deterministic, engines, max(timeouts, default=60.0))


def start_graders(
    config: Config, perspectives: Mapping[str, Perspective], seed: int, deterministic: bool
) -> JudgePanel | None:
    """Create the judges of `evaluation.judge_model`, whose engines `start_judges` has begun to start.

    Returns None where the judges that reward also grade.
    """
    pools = {
        name: JudgePool(perspectives[name], pool, config, seed) for name, pool in config.grading_pools.items()
    }
    return JudgePanel(pools, perspectives, deterministic) if pools else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judges' verdict on one reply: `verdict.reward.value`, `verdict["expression"].score`.

    `reward` is None when a judgment failed; `masked_because` then says which, and why.
    """

    judgments: Mapping[str, Judgment]
    reward: Reward | None
    masked_because: str = ""

    def __getitem__(self, perspective: str) -> Judgment:
        return self.judgments[perspective]


class Judges:
    """The judges of a configuration, for texts of any origin: PERM as a reward model.

    Starts Ray and the judges when entered, nothing else, and ends them on the way out.

    Example:
        >>> with perm_ray.Judges("local") as judges:
        ...     verdict = judges.score(persona="Ana, 41, a nurse", scenario="She was passed over.",
        ...                            query="I should be happy for Rui.", response="You can be both.")
        >>> verdict["expression"].score
        2.9

    Args:
        config: A configuration, or what `load_config` makes one of (a file, a shipped name, a mapping).
        say: Called with a line of text while resources are waited for; prints to standard error as a rule.
    """

    def __init__(
        self,
        config: Config | str | Path | Mapping[str, Any] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        whole = config if isinstance(config, Config) else load_config(config)
        self.config = replace(whole, evaluation=replace(whole.evaluation, judge_model=None))
        self._say = say or _say
        self._panel: JudgePanel | None = None
        self._cluster = ExitStack()
        self.perspectives = build_perspectives(self.config.judges)
        check_perspectives(self.perspectives, self.config.rewards)

    def __enter__(self) -> Self:
        config = self.config
        rows = judge_demands(config)
        check_local_resources(config.ray, rows)
        folders = resolve_judges(config)
        with ExitStack() as stack:
            places = stack.enter_context(cluster(config.ray, rows, self._say))
            seed, deterministic = config.run.seed, config.run.deterministic
            panel = start_judges(config, self.perspectives, folders, seed, deterministic, places)
            wait_all(panel.starting(), timeout_s=panel.start_timeout_s, doing="starting")
            self._cluster = stack.pop_all()
        self._panel = panel
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._panel = None
        self._cluster.close()

    @property
    def engines(self) -> JudgeEnginePool | None:
        """Return the engines that are asked, while the judges are up."""
        return self._panel.engines if self._panel is not None else None

    def judge(self, items: Iterable[JudgeItem]) -> Iterator[tuple[JudgeItem, Mapping[str, Judgment]]]:
        """Yield each item, in order, with its judgments by perspective."""
        if self._panel is None:
            raise RunError("The judges are not up: use them within `with perm_ray.Judges(...) as judges:`.")
        return self._panel.judge(items)

    def score(
        self,
        *,
        persona: str,
        scenario: str,
        query: str,
        response: str,
        analysis: str | None = None,
        language: str | None = None,
    ) -> Verdict:
        """Judge one reply from every perspective.

        Args:
            persona: Who the seeker is.
            scenario: What is happening to them.
            query: What they said.
            response: The reply that they read.
            analysis: What the supporter understood; without it resonation is skipped.
            language: A BCP 47 tag, which chooses the rubrics' variants.
        """
        about = make_scenario(persona, scenario, query, language)
        return self.verdict(JudgeItem("score", about, Sections(analysis, response)))

    def verdict(self, item: JudgeItem) -> Verdict:
        """Judge one text from every perspective that can be asked, and return its reward as well."""
        ((_, judgments),) = self.judge([item])
        reward, why, _ = reward_of_asked(judgments, self.perspectives, self.config.rewards)
        return Verdict(judgments, reward, why)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
