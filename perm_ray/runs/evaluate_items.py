"""Ask models the items of a benchmark that needs no judge, each model in engines of its own.

A model is asked as a judge engine is: for the probabilities of numbers, or for an answer. An endpoint that
gives log-probabilities takes the same queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from perm_ray.cluster.calls import wait_all
from perm_ray.cluster.placement import Demand, Places, check_gpus, check_local_resources, judge_role
from perm_ray.cluster.session import cluster
from perm_ray.config.engines import EndpointModel, EngineModel
from perm_ray.config.schema import Config
from perm_ray.data.benchmark_items import BenchmarkItem
from perm_ray.errors import ConfigError
from perm_ray.evaluation.item_scores import item_row, measured, queries_of
from perm_ray.evaluation.model_comparison import Measured
from perm_ray.experience import Report
from perm_ray.files import text_digest, write_jsonl_atomic
from perm_ray.judges.pool import JudgeEnginePool
from perm_ray.models.resolve import check_context
from perm_ray.runs.candidates import Candidate, begin_evaluation, find_candidates, kept_rows
from perm_ray.runs.signals import StopSignals

_NAME = "tested"  # of the model's engine
_ITEMS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class ItemsPlan:
    """A benchmark for models, with everything checked."""

    config: Config
    candidates: Sequence[Candidate]
    items: Sequence[BenchmarkItem]


def plan_items(config: Config, models: Sequence[str], items: Sequence[BenchmarkItem]) -> ItemsPlan:
    """Find the models and check them.

    Raises:
        UserError: Something cannot be used as it is.
    """
    check_gpus(config)
    check_local_resources(config.ray, [_demand(config)])
    candidates = find_candidates(models, config.models)
    for candidate in candidates:
        if isinstance(candidate.model, EndpointModel):
            if not candidate.model.logprobs:
                raise ConfigError(
                    f"models.{candidate.name}.logprobs must be true, since choices are scored by "
                    "log-probability: set it if the endpoint gives them."
                )
        else:
            length = config.rollout.engine.max_model_len
            check_context(candidate.model, length, "rollout.engine.max_model_len")
    return ItemsPlan(config, candidates, items)


def evaluate_items(
    plan: ItemsPlan, folder: Path, stop: StopSignals, report: Report
) -> dict[str, list[Measured]]:
    """Ask every model that has no answers yet, and return what was measured, by model.

    Args:
        plan: From `plan_items`.
        folder: Where `setup.json` and `answers/` are written.
        stop: Says when the evaluation was asked to stop.
        report: Called with the phase, and how much of it is done.

    Raises:
        DataError: The folder holds an evaluation of other items or with other settings.
        Interrupted: The evaluation was asked to stop; run it again to go on.
    """
    config = plan.config
    setup = {
        "items": text_digest("\n".join(item.contents() for item in plan.items)),
        "thinking": config.prompt.enable_thinking,
        "seed": config.run.seed,
    }
    missing = begin_evaluation(folder, setup, plan.candidates)
    if missing:
        rows = [_demand(config)]
        with cluster(config.ray, rows, lambda text: report(text, 0, 1), started=stop.reinstall) as places:
            for file, candidate in missing.items():
                write_jsonl_atomic(file, _ask(plan, candidate, places, stop, report))
    return {each.name: measured(plan.items, kept_rows(each.file(folder))) for each in plan.candidates}


def _demand(config: Config) -> Demand:
    engine = config.rollout.engine
    return Demand(judge_role(_NAME), engine.replicas, engine.num_cpus, engine.num_gpus, "", engine.resources)


def _ask(
    plan: ItemsPlan, candidate: Candidate, places: Places, stop: StopSignals, report: Report
) -> list[dict[str, object]]:
    """Start the model's engines, ask them every item, and end them; returns a row an item."""
    config, model = plan.config, candidate.model
    engine, folders = config.rollout.engine, {}
    if not isinstance(model, EndpointModel):
        folders = {_NAME: model}
        thinking = config.prompt.enable_thinking
        model = EngineModel(**asdict(engine), model=str(model), enable_thinking=thinking)
    report(f"starting {candidate.name}", 0, 1)
    scheduling = {_NAME: places.of(judge_role(_NAME), engine.replicas)}
    seed, deterministic = config.run.seed, config.run.deterministic
    pool = JudgeEnginePool({_NAME: model}, folders, seed, deterministic, scheduling)
    rows: list[dict[str, object]] = []
    try:
        wait_all(pool.starting(), timeout_s=engine.start_timeout_s, doing=f"starting with {candidate.name}")
        for start in range(0, len(plan.items), _ITEMS_AT_ONCE):
            stop.check()
            items = plan.items[start : start + _ITEMS_AT_ONCE]
            queries = [queries_of(item) for item in items]
            answers = iter(pool.ask(_NAME, [q for own in queries for q in own], config.rollout.timeout_s))
            for item, own in zip(items, queries, strict=True):
                rows.append(item_row(item, [next(answers) for _ in own]))
            report(candidate.name, len(rows), len(plan.items))
    finally:
        pool.end()
    return rows
