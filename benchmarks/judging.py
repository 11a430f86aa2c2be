"""What judging costs: three modes, with and without the prefix cache, one engine for all pools or four.

64 completions of the policy (16 scenarios, 4 each), judged from every perspective. Without the cache a
judgment costs so much more that only 2 of them are judged, and once: compare the figures per judgment.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from perm_ray.config.judges import JudgePoolConfig
from perm_ray.config.schema import Config
from perm_ray.judges.pool_load import load_metrics
from perm_ray.types import NO_TOKENS, JudgeItem, Scenario, Sections, Status

if TYPE_CHECKING:
    from perm_ray.judges.panel import JudgePanel

DESCRIPTION = "Judging: 64 completions from four perspectives"
CONFIG = "local.yaml"
MODES = ("expected", "reasoned", "sampled")
NUM_SCENARIOS, NUM_COMPLETIONS, FEW = 16, 4, 2
ROUNDS = {"expected": 2, "reasoned": 1, "sampled": 1}  # the last two take minutes

Figures = dict[str, float | list[float]]


def measure(config: Config) -> Figures:
    """Medians over the rounds; each begins with an empty cache.

    `cache_hit_share` is the share of prompt tokens found in the cache, `pools_busy_together` the share
    of the judging time in which all four pools have work running (four engines), both for `expected`.
    """
    config = replace(config, run=replace(config.run, deterministic=False))
    items = _completions(config)
    figures: Figures = {"completions": float(len(items))}
    for cache, num_engines in itertools.product((True, False), (4, 1)):
        figures |= _settings(config, items if cache else items[:FEW], num_engines, cache)
    figures["cache_hit_share"] = figures["expected, 4 engines: cache_hit_share"]
    figures["pools_busy_together"] = figures["expected, 4 engines: pools_busy_together"]
    for mode in MODES:
        figures[f"judgments_per_s {mode}"] = figures[f"{mode}, 4 engines: judgments_per_s"]
    return figures


def _completions(config: Config) -> list[JudgeItem]:
    """What the policy answers, cut in half: a small model seldom writes both sections by itself."""
    from perm_ray.cluster.calls import wait_all
    from perm_ray.cluster.placement import demands
    from perm_ray.cluster.session import start_ray, stop_ray
    from perm_ray.rollout.pool import RolloutPool
    from perm_ray.runs.run_plan import plan_run, prepare_models
    from perm_ray.runs.signals import StopSignals

    models = prepare_models(plan_run(config))
    prompts = models.train_prompts[:NUM_SCENARIOS]
    scenarios = {prompt.scenario.scenario_id: prompt.scenario for prompt in prompts}
    rows = demands(config)[:1]  # the rollout engine
    with StopSignals() as stop:
        try:
            start_ray(config.ray, rows)
            stop.reinstall()
            pool = RolloutPool(config.rollout, models.policy, seed=0, deterministic=True)
            wait_all(pool.starting(), timeout_s=config.rollout.engine.start_timeout_s, doing="starting")
            completions = list(pool.sample(prompts, num_completions=NUM_COMPLETIONS, step=0))
        finally:
            stop_ray()
    completions.sort(key=lambda completion: (completion.scenario_id, completion.index))
    return [
        _item(scenarios[completion.scenario_id], completion.index, completion.text.split())
        for completion in completions
    ]


def _item(scenario: Scenario, index: int, words: Sequence[str]) -> JudgeItem:
    half = len(words) // 2
    sections = Sections(" ".join(words[:half]) or "-", " ".join(words[half:]) or "-")
    return JudgeItem(f"{scenario.scenario_id}/{index}", scenario, sections)


def _settings(config: Config, items: Sequence[JudgeItem], num_engines: int, cache: bool) -> Figures:
    """All modes on one set of engines."""
    from perm_ray.cluster.calls import wait_all
    from perm_ray.judges.panel import JudgePanel
    from perm_ray.judges.pool import JudgePool
    from perm_ray.judges.startup import Judges

    figures: Figures = {}
    config = _with_engines(config, num_engines, cache)
    with Judges(config) as up:
        for mode in MODES:
            pools = {
                name: JudgePool(up.perspectives[name], _with_mode(pool, mode), config, config.run.seed)
                for name, pool in config.judges.pools.items()
            }
            for pool in pools.values():
                wait_all(pool.starting(), timeout_s=60.0, doing="starting")
            panel = JudgePanel(pools, up.perspectives, deterministic=False, engines=up.engines)
            _round(panel, items[:2])  # compiles grammars
            rounds = [_round(panel, items) for _ in range(ROUNDS[mode] if cache else 1)]
            name = f"{mode}, {num_engines} engine{'s' if num_engines > 1 else ''}"
            name += "" if cache else ", no cache"
            figures |= {f"{name}: {what}": median(r[what] for r in rounds) for what in rounds[0]}
            shown = ", ".join(f"{what} {median(r[what] for r in rounds):.3g}" for what in rounds[0])
            print(f"{name}: {shown}", file=sys.stderr, flush=True)
            figures[f"{name}: seconds, rounds"] = [r["seconds"] for r in rounds]
    return figures


def _with_engines(config: Config, num_engines: int, cache: bool) -> Config:
    """Give all pools one engine, or one each."""
    engine = replace(next(iter(config.judge_engines.values())), replicas=1, prefix_caching=cache)
    own = {name: name if num_engines > 1 else "judge" for name in config.judges.pools}
    pools = {name: replace(pool, model=own[name]) for name, pool in config.judges.pools.items()}
    return replace(
        config, models=dict.fromkeys(own.values(), engine), judges=replace(config.judges, pools=pools)
    )


def _with_mode(pool: JudgePoolConfig, mode: str) -> JudgePoolConfig:
    return replace(pool, scoring=replace(pool.scoring, mode=mode))


def _round(panel: JudgePanel, items: Sequence[JudgeItem]) -> dict[str, float]:
    """Judge all items once, from an empty cache."""
    panel.forget()
    start, batch = time.monotonic(), panel.batch()
    for item in items:
        batch.submit((item.item_id, 0), item.scenario, item.sections)
    report = batch.collect()
    seconds = time.monotonic() - start
    judgments = [judgment for found in report.judgments.values() for judgment in found.values()]
    tokens = sum((judgment.tokens for judgment in judgments), NO_TOKENS)
    return {
        "seconds": seconds,
        "judgments_per_s": len(judgments) / seconds,
        "ok_share": sum(judgment.status == Status.OK for judgment in judgments) / len(judgments),
        "tokens read a judgment": tokens.prompt / len(judgments),
        "tokens computed a judgment": (tokens.prompt - tokens.cached + tokens.completion) / len(judgments),
        "cache_hit_share": tokens.cached / tokens.prompt,
        "pools_busy_together": load_metrics(report.loads, time.time())["judge/busy_together"],
    }
