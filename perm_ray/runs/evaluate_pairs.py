"""Compare models by pairs: each answers the same scenarios, and one judge says which reply it prefers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perm_ray.cluster.calls import wait_all
from perm_ray.cluster.placement import (
    Demand,
    Places,
    check_gpus,
    check_local_resources,
    judge_role,
)
from perm_ray.cluster.session import cluster
from perm_ray.config.engines import EndpointModel
from perm_ray.config.schema import Config
from perm_ray.data.prompts import load_template, split_sections
from perm_ray.data.scenarios import load_scenarios, scenario_digest
from perm_ray.errors import ConfigError, DataError
from perm_ray.evaluation.pairwise import (
    PairFigures,
    Preference,
    pair_figures,
    pair_query,
    preference,
    verdict,
)
from perm_ray.experience import Report
from perm_ray.files import fingerprint, write_jsonl_atomic
from perm_ray.judges.guard import DEFAULT_MAX_CHARS, make_fence, sanitise
from perm_ray.judges.pool import JudgeEnginePool
from perm_ray.models.resolve import check_context, resolve_model
from perm_ray.runs.candidates import Candidate, begin_evaluation, find_candidates, kept_rows
from perm_ray.runs.evaluate import prompts_of, rollout_demands, sampling
from perm_ray.runs.signals import StopSignals
from perm_ray.types import Prompt, Scenario

_SCENARIOS_AT_ONCE = 16
Pair = tuple[Candidate, Candidate]


@dataclass(frozen=True, slots=True)
class PairsPlan:
    """A comparison with everything checked; `judge` is an entry of `models`."""

    config: Config
    candidates: Sequence[Candidate]
    prompts: Mapping[str, Sequence[Prompt]]
    scenarios: Sequence[Scenario]
    judge: str
    judge_folders: Mapping[str, Path]

    @property
    def pairs(self) -> list[Pair]:
        """Return every two candidates, the earlier one first."""
        return list(itertools.combinations(self.candidates, 2))


def judge_of(config: Config, name: str | None) -> str:
    """Return the entry of `models` that judges: the one given, else `evaluation.judge_model`, else the
    first that a pool asks. Raises `ConfigError`."""
    asked = [pool.model for pool in config.judges.pools.values()]
    judge = name or config.evaluation.judge_model or next(iter(asked), "")
    if judge not in config.models:
        known = ", ".join(config.models) or "none"
        raise ConfigError(f"--judge must be one of models ({known}), found {judge or 'none'}.")
    return judge


def plan_pairs(config: Config, models: Sequence[str], limit: int | None, judge: str | None) -> PairsPlan:
    """Find the models and the judge, and check everything that can be checked before anything starts.

    Raises:
        UserError: Something cannot be used as it is.
    """
    check_gpus(config)
    name = judge_of(config, judge)
    candidates = find_candidates(models, config.models)
    demands = [*rollout_demands(config, candidates), *_judge_demands(config, name)]
    check_local_resources(config.ray, demands)
    scenarios = load_scenarios(config.data.heldout)[:limit]
    if len(scenarios) < 2 or len(candidates) < 2:
        raise DataError(
            "A comparison needs 2 models and 2 scenarios or more, found "
            f"{len(candidates)} and {len(scenarios)}: give more."
        )
    model, folders = config.models[name], {}
    if isinstance(model, EndpointModel):
        if not model.logprobs:
            raise ConfigError(f"models.{name}.logprobs must be true to judge pairs: set it if it gives them.")
    else:
        folders = {name: resolve_model(model.model, model.adapter)}
        check_context(folders[name], model.max_model_len, f"models.{name}.max_model_len")
    prompts = {each.name: prompts_of(config, each, scenarios) for each in candidates}
    return PairsPlan(config, candidates, prompts, scenarios, name, folders)


def compare_pairs(plan: PairsPlan, folder: Path, stop: StopSignals, report: Report) -> list[PairResult]:
    """Have models answer and pairs judged that are missing, and return every pair's preferences.

    Args:
        plan: From `plan_pairs`.
        folder: Where `setup.json`, `answers/` and `pairs/` are written.
        stop: Says when the comparison was asked to stop.
        report: Called with the phase, and how much of it is done.

    Raises:
        DataError: The folder holds a comparison with another setup.
        Interrupted: It was asked to stop; run it again to go on.
    """
    config, rollout, model = plan.config, plan.config.rollout, plan.config.models[plan.judge]
    setup = {
        "scenarios": scenario_digest(plan.scenarios),
        "judge": [model.model, *(fingerprint(each) for each in plan.judge_folders.values())],
        "sampling": [rollout.temperature, rollout.top_p, rollout.max_completion_tokens],
        "prompt": [load_template(config.prompt.template).digest_of_all, config.prompt.prefix],
        "seed": config.run.seed,
    }
    missing = begin_evaluation(folder, setup, plan.candidates)
    files = {_file(folder, pair): pair for pair in plan.pairs}
    unjudged = {file: pair for file, pair in files.items() if not file.is_file()}
    if missing or unjudged:
        rows = [*rollout_demands(config, plan.candidates), *_judge_demands(config, plan.judge)]
        with cluster(config.ray, rows, lambda text: report(text, 0, 1), started=stop.reinstall) as places:
            for file, candidate in missing.items():
                stop.check()
                write_jsonl_atomic(file, _answers(plan, candidate, places, report))
            if unjudged:
                _judge(plan, folder, unjudged, places, stop, report)
    return [PairResult.read(pair, file) for file, pair in files.items()]


@dataclass(frozen=True, slots=True)
class PairResult:
    """The preferences between two models, and how many scenarios got no verdict."""

    names: tuple[str, str]
    found: Sequence[Preference]
    unanswered: int

    @classmethod
    def read(cls, pair: Pair, file: Path) -> PairResult:
        """Read what `compare_pairs` wrote."""
        rows = kept_rows(file)
        found = [
            preference(row["scenario"], tuple(row["replies"]), tuple(row["verdicts"]))
            for row in rows
            if None not in row["verdicts"]
        ]
        return cls((pair[0].name, pair[1].name), found, len(rows) - len(found))

    def figures(self, seed: int) -> PairFigures:
        """Return the pair's figures. Raises `DataError` when the judge said nothing about any scenario."""
        if not self.found:
            raise DataError(
                f"The judge preferred neither of {' and '.join(self.names)} in any scenario, since no answer "
                "could be read: choose another judge with --judge."
            )
        return pair_figures(self.names, self.found, self.unanswered, seed)


def _judge_demands(config: Config, name: str) -> list[Demand]:
    model = config.models[name]
    if isinstance(model, EndpointModel):
        return []
    return [Demand(judge_role(name), model.replicas, model.num_cpus, model.num_gpus, "", model.resources)]


def _file(folder: Path, pair: Pair) -> Path:
    return folder / "pairs" / f"{pair[0].digest[:16]}-{pair[1].digest[:16]}.jsonl"


def _answers(
    plan: PairsPlan, candidate: Candidate, places: Places, report: Report
) -> list[dict[str, object]]:
    """Have the model answer every scenario once."""
    prompts = plan.prompts[candidate.name]
    rows: dict[str, dict[str, object]] = {}
    with sampling(plan.config, candidate, places, report) as rollouts:
        for completion in rollouts.sample(prompts, num_completions=1, step=0, purpose="heldout"):
            reply = split_sections(completion.text).response or completion.text
            rows[completion.scenario_id] = {"scenario": completion.scenario_id, "reply": reply}
            report(candidate.name, len(rows), len(prompts))
    return [rows[prompt.scenario.scenario_id] for prompt in prompts]


def _judge(
    plan: PairsPlan,
    folder: Path,
    unjudged: Mapping[Path, Pair],
    places: Places,
    stop: StopSignals,
    report: Report,
) -> None:
    """Start the judge, and have every pair of replies judged in both orders."""
    config, model = plan.config, plan.config.models[plan.judge]
    replies = {each.digest: _replies(each.file(folder)) for each in plan.candidates}
    endpoint = isinstance(model, EndpointModel)
    scheduling = {} if endpoint else {plan.judge: places.of(judge_role(plan.judge), model.replicas)}
    pool = JudgeEnginePool(
        {plan.judge: model}, plan.judge_folders, config.run.seed, config.run.deterministic, scheduling
    )
    report("starting the judge", 0, 1)
    timeout_s = 300.0 if endpoint else model.start_timeout_s
    wait_all(pool.starting(), timeout_s=timeout_s, doing="starting")
    for file, (first, second) in unjudged.items():
        rows: list[dict[str, object]] = []
        one, other = replies[first.digest], replies[second.digest]
        for start in range(0, len(plan.scenarios), _SCENARIOS_AT_ONCE):
            stop.check()
            own = plan.scenarios[start : start + _SCENARIOS_AT_ONCE]
            texts = [(one[scenario.scenario_id], other[scenario.scenario_id]) for scenario in own]
            queries = [
                query for s, pair in zip(own, texts, strict=True) for query in _both_orders(config, s, *pair)
            ]
            answers = pool.ask(plan.judge, queries, config.rollout.timeout_s)
            said = [verdict(answer) for answer in answers]
            for place, (scenario, pair) in enumerate(zip(own, texts, strict=True)):
                verdicts = said[2 * place : 2 * place + 2]
                rows.append({"scenario": scenario.scenario_id, "replies": pair, "verdicts": verdicts})
            report(f"{first.name} and {second.name}", len(rows), len(plan.scenarios))
        write_jsonl_atomic(file, rows)
    pool.end()


def _both_orders(config: Config, scenario: Scenario, one: str, other: str):
    fence = make_fence(config.run.seed, scenario.scenario_id)
    first, second = (sanitise(text, DEFAULT_MAX_CHARS, fence) for text in (one, other))
    return pair_query(scenario, first, second, fence), pair_query(scenario, second, first, fence)


def _replies(file: Path) -> dict[str, str]:
    return {row["scenario"]: row["reply"] for row in kept_rows(file)}
