"""Evaluate models on scenarios: each answers all of them, and one panel of judges scores every answer.

Answers are kept by the digest of the model's weights, written when all of a model's are judged: an evaluation
that was stopped goes on with the models that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import ray

from perm_ray.cluster.calls import wait_all
from perm_ray.cluster.placement import (
    ROLLOUT,
    Demand,
    Places,
    check_gpus,
    check_local_resources,
    judge_demands,
    rollout_demand,
)
from perm_ray.cluster.session import cluster
from perm_ray.config.engines import EndpointModel
from perm_ray.config.schema import Config
from perm_ray.data.prompts import build_messages, build_prompts, load_template
from perm_ray.data.scenarios import load_scenarios, scenario_digest
from perm_ray.errors import DataError
from perm_ray.evaluation.model_comparison import Measured
from perm_ray.experience import Collector, Report
from perm_ray.files import fingerprint, json_line, text_digest, write_jsonl_atomic
from perm_ray.judges.panel import JudgePanel
from perm_ray.judges.perspective import Perspective
from perm_ray.judges.startup import build_perspectives, check_judge_prompts, resolve_judges, start_judges
from perm_ray.models.chat import ChatRenderer
from perm_ray.models.resolve import check_context
from perm_ray.rewards.reward import check_perspectives
from perm_ray.rewards.score_map import ScoreMap, score_maps_for
from perm_ray.rollout.endpoint_sampler import EndpointSampler, Sampler
from perm_ray.rollout.pool import RolloutPool
from perm_ray.runs.candidates import Candidate, begin_evaluation, find_candidates
from perm_ray.runs.signals import StopSignals
from perm_ray.tracking.ambiguous import AmbiguityRule
from perm_ray.tracking.samples import RolloutRow, parse_row, plain_row, read_lines, sample_rows
from perm_ray.tracking.slices import slice_names
from perm_ray.types import FinishReason, Prompt, Scenario


@dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation with everything checked; `config` has the pools that grade, `prompts` the scenarios as
    each candidate's tokeniser writes them."""

    config: Config
    candidates: Sequence[Candidate]
    prompts: Mapping[str, Sequence[Prompt]]
    scenarios: Sequence[Scenario]
    perspectives: Mapping[str, Perspective]
    score_maps: Mapping[str, ScoreMap]
    judges: Mapping[str, Path]

    def setup(self) -> dict[str, object]:
        """Return everything that the figures depend on but the models, for `setup.json`."""
        config, rollout = self.config, self.config.rollout
        return {
            "scenarios": scenario_digest(self.scenarios),
            "judges": {name: fingerprint(folder) for name, folder in self.judges.items()},
            "pools": {
                name: [pool.model, self.perspectives[name].rubric.digest_of_all, asdict(pool.scoring)]
                for name, pool in config.judges.pools.items()
            },
            "sampling": [rollout.temperature, rollout.top_p, rollout.max_completion_tokens],
            "prompt": [load_template(config.prompt.template).digest_of_all, config.prompt.prefix],
            "answers": config.evaluation.completions_per_prompt,
            "rewards": text_digest(json_line(asdict(config.rewards))),
            "seed": config.run.seed,
        }


def plan_evaluation(config: Config, models: Sequence[str], limit: int | None) -> EvaluationPlan:
    """Find the models and check everything that can be checked before anything heavy starts.

    Args:
        config: Its held-out data are what is answered; `evaluation.judge_model` grades, where it is given.
        models: See `find_candidates`.
        limit: Only the first so many scenarios.

    Raises:
        UserError: Something cannot be used as it is.
    """
    pools = config.grading_pools or config.judges.pools
    evaluation = replace(config.evaluation, judge_model=None)
    config = replace(config, judges=replace(config.judges, pools=pools), evaluation=evaluation)
    perspectives = build_perspectives(config.judges)
    check_perspectives(perspectives, config.rewards)
    candidates = find_candidates(models, config.models)
    check_gpus(config)
    check_local_resources(config.ray, [*rollout_demands(config, candidates), *judge_demands(config)])
    scenarios = load_scenarios(config.data.heldout)[:limit]
    if len(scenarios) < 2:
        raise DataError(f"Models are compared on 2 scenarios or more, found {len(scenarios)}: give more.")
    score_maps = score_maps_for(config, perspectives, [scenario.language for scenario in scenarios])
    judges = resolve_judges(config)
    check_judge_prompts(config, perspectives, judges, scenarios, config.rollout.max_completion_tokens)
    prompts = {each.name: prompts_of(config, each, scenarios) for each in candidates}
    return EvaluationPlan(config, candidates, prompts, scenarios, perspectives, score_maps, judges)


def evaluate(
    plan: EvaluationPlan, folder: Path, stop: StopSignals, report: Report
) -> dict[str, list[Measured]]:
    """Have every model that has none yet answer, and return all judged answers by model.

    Args:
        plan: From `plan_evaluation`.
        folder: Where `setup.json` and `answers/` are written.
        stop: Says when the evaluation was asked to stop.
        report: Called with the phase, and how much of it is done.

    Raises:
        DataError: The folder holds an evaluation with other scenarios, judges or settings.
        Interrupted: The evaluation was asked to stop; run it again to go on.
    """
    missing = begin_evaluation(folder, plan.setup(), plan.candidates)
    if missing:
        config = plan.config
        rows = [*rollout_demands(config, plan.candidates), *judge_demands(config)]
        with cluster(config.ray, rows, lambda text: report(text, 0, 1), started=stop.reinstall) as places:
            seed, deterministic = config.run.seed, config.run.deterministic
            panel = start_judges(config, plan.perspectives, plan.judges, seed, deterministic, places)
            report("starting the judges", 0, 1)
            wait_all(panel.starting(), timeout_s=panel.start_timeout_s, doing="starting")
            for file, candidate in missing.items():
                stop.check()
                write_jsonl_atomic(file, map(plain_row, _answer(plan, candidate, panel, places, report)))
    return {candidate.name: read_answers(candidate.file(folder)) for candidate in plan.candidates}


def rollout_demands(config: Config, candidates: Sequence[Candidate]) -> list[Demand]:
    """Return what the engines of the candidates take, one model's at a time; nothing for endpoints."""
    local = any(isinstance(each.model, Path) for each in candidates)
    return [rollout_demand(config)] if local else []


def read_answers(file: Path) -> list[Measured]:
    """Return the judged answers of a JSONL file of rollouts, such as `samples/heldout_000000.jsonl`."""
    return [_measured(row) for row in read_lines(file, parse_row).rows]


def prompts_of(config: Config, candidate: Candidate, scenarios: Sequence[Scenario]) -> Sequence[Prompt]:
    """Return the scenarios as a model's chat template and tokeniser write them. Raises `UserError`.

    An endpoint renders its own prompt: it gets the messages, and no prefix.
    """
    prompt, template = config.prompt, load_template(config.prompt.template)
    if isinstance(candidate.model, EndpointModel):
        return [Prompt(each, build_messages(each, template), "", ()) for each in scenarios]
    check_context(candidate.model, config.rollout.engine.max_model_len, "rollout.engine.max_model_len")
    renderer = ChatRenderer(candidate.model, prompt.enable_thinking)
    return build_prompts(scenarios, template, prompt.prefix, renderer, prompt.max_tokens)


@contextmanager
def sampling(config: Config, candidate: Candidate, places: Places, report: Report) -> Iterator[Sampler]:
    """Start engines of the model, and end them with the block, so that another's can have their place."""
    seed, deterministic = config.run.seed, config.run.deterministic
    if isinstance(candidate.model, EndpointModel):
        yield EndpointSampler(candidate.name, candidate.model, config.rollout, seed)
        return
    report(f"starting {candidate.name}", 0, 1)
    placed = places.of(ROLLOUT, config.rollout.engine.replicas)
    rollouts = RolloutPool(config.rollout, candidate.model, seed, deterministic, placed)
    try:
        bound = config.rollout.engine.start_timeout_s
        wait_all(rollouts.starting(), timeout_s=bound, doing=f"starting with {candidate.name}")
        yield rollouts
    finally:
        for actor in rollouts.actors:
            ray.kill(actor)


def _answer(
    plan: EvaluationPlan, candidate: Candidate, panel: JudgePanel, places: Places, report: Report
) -> list[RolloutRow]:
    """Have the model answer and be judged."""
    config = plan.config
    with sampling(config, candidate, places, report) as rollouts:
        collector = Collector(rollouts, panel, plan.perspectives, config.rewards, plan.score_maps)
        groups = collector.collect(
            plan.prompts[candidate.name],
            num_completions=config.evaluation.completions_per_prompt,
            step=0,  # the same random numbers for every model: differences are paired
            purpose="heldout",
            report=report,
        ).groups
    return sample_rows(0, groups, AmbiguityRule(config.judges.ambiguity, plan.perspectives))


def _measured(row: RolloutRow) -> Measured:
    shape = {
        "format": float(row.analysis is not None and row.response is not None),
        "truncated": float(row.finish_reason == FinishReason.LENGTH),
        "tokens": float(row.tokens),
    }
    reward = {} if row.reward is None else {"reward": row.reward.value}
    scores = {name: j.score for name, j in row.judgments.items() if j.score is not None}
    return Measured(row.scenario_id, slice_names(row), reward | scores | shape, row.response or "")
