"""What an evaluation costs over sampling alone: `evaluate perm` judges answers while others are sampled.

The same held-out prompts, sampled by the pool alone and by the collector with its judges beside, in turns.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

from perm_ray.config.schema import Config

DESCRIPTION = "Evaluation against sampling alone, tokens per second"
CONFIG = "local.yaml"
NUM_SCENARIOS, ROUNDS = 32, 3


def measure(config: Config) -> dict[str, float | list[float]]:
    """Return tokens/s of the pool alone, of sampling while judges work, and of the whole evaluation.

    `sampling_vs_pool` is the median over rounds of sampling within an evaluation over the pool alone.
    """
    from perm_ray.cluster.calls import wait_all
    from perm_ray.cluster.placement import judge_demands, rollout_demand
    from perm_ray.cluster.session import cluster
    from perm_ray.experience import Collector, silent
    from perm_ray.judges.startup import start_judges
    from perm_ray.runs.evaluate import plan_evaluation, sampling

    plan = plan_evaluation(config, [config.policy.model], NUM_SCENARIOS)
    config = replace(plan.config, run=replace(plan.config.run, deterministic=False))
    (candidate,) = plan.candidates
    prompts = plan.prompts[candidate.name]
    alone, beside, whole = [], [], []
    with cluster(config.ray, [rollout_demand(config), *judge_demands(config)], print) as places:
        panel = start_judges(config, plan.perspectives, plan.judges, 0, False, places)
        wait_all(panel.starting(), timeout_s=panel.start_timeout_s, doing="starting")
        with sampling(config, candidate, places, silent) as pool:
            collector = Collector(pool, panel, plan.perspectives, config.rewards, plan.score_maps)
            for step in range(ROUNDS + 1):
                start = time.monotonic()
                tokens = sum(len(c.token_ids) for c in pool.sample(prompts, num_completions=2, step=step))
                pool_speed = tokens / (time.monotonic() - start)
                panel.forget()
                start = time.monotonic()
                found = collector.collect(prompts, num_completions=2, step=step)
                seconds = time.monotonic() - start
                if step > 0:  # the first warms everything up
                    alone.append(pool_speed)
                    beside.append(tokens / found.generate_s)  # the same tokens: the same random numbers
                    whole.append(tokens / seconds)
    ratios = [one / other for one, other in zip(beside, alone, strict=True)]
    return {
        "sequences_in_flight": float(2 * NUM_SCENARIOS),
        "pool_tokens_per_s": median(alone),
        "sampling_tokens_per_s": median(beside),
        "evaluation_tokens_per_s": median(whole),
        "sampling_vs_pool": median(ratios),
        "sampling_vs_pool_rounds": ratios,
    }
