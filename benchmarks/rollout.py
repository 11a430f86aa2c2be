"""What the rollout pool costs over bare vLLM: the same prompts, the same engine settings, one run.

Bare is `vllm.LLM.generate` in an actor of its own. The two take turns, so that neither disturbs the
other and a change of the machine's speed hits both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from perm_ray.config.engines import EngineConfig
from perm_ray.config.schema import Config, RolloutConfig

DESCRIPTION = "Rollout pool against bare vLLM, tokens per second"
CONFIG = "local.yaml"
NUM_PROMPTS, NUM_COMPLETIONS, MAX_TOKENS, ROUNDS = 16, 4, 128, 3


class BareEngine:
    """`vllm.LLM` in a process of its own, with the pool's settings and requests."""

    def __init__(self, model_dir: Path, config: EngineConfig) -> None:
        from vllm import LLM

        from perm_ray.models.vllm import engine_kwargs

        self._llm = LLM(**engine_kwargs(model_dir, config, seed=0))

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> tuple[int, float]:
        """Sample once after each prompt; returns tokens and seconds."""
        from vllm import SamplingParams

        params = [
            SamplingParams(max_tokens=MAX_TOKENS, seed=seed, logprobs=0, detokenize=False) for seed in seeds
        ]
        start = time.monotonic()
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False
        )
        return sum(len(output.outputs[0].token_ids) for output in outputs), time.monotonic() - start


def measure(config: Config) -> dict[str, float | list[float]]:
    """`pool_vs_bare` is the median over rounds of pool over bare tokens/s, 64 sequences in flight."""
    import ray

    from perm_ray.cluster.calls import wait_all
    from perm_ray.cluster.placement import demands
    from perm_ray.cluster.session import start_ray, stop_ray
    from perm_ray.models.vllm import engine_env
    from perm_ray.rollout.actor import completion_seed
    from perm_ray.rollout.pool import RolloutPool
    from perm_ray.runs.run_plan import plan_run, prepare_models

    engine = replace(config.rollout.engine, replicas=1)
    sampling: RolloutConfig = replace(config.rollout, engine=engine, max_completion_tokens=MAX_TOKENS)
    models = prepare_models(plan_run(config))
    prompts = models.train_prompts[:NUM_PROMPTS]
    start_ray(config.ray, demands(config))
    try:
        pool = RolloutPool(sampling, models.policy, seed=0, deterministic=False)
        bare_actor: Any = ray.remote(
            num_cpus=engine.num_cpus,
            num_gpus=engine.num_gpus,
            runtime_env={"env_vars": engine_env(engine)},
        )(BareEngine)
        bare = bare_actor.remote(models.policy, engine)
        wait_all(pool.starting(), timeout_s=engine.start_timeout_s, doing="starting")
        pool_speeds, bare_speeds = [], []
        for round_ in range(ROUNDS + 1):
            start = time.monotonic()
            completions = list(pool.sample(prompts, num_completions=NUM_COMPLETIONS, step=round_))
            pool_speed = sum(len(c.token_ids) for c in completions) / (time.monotonic() - start)
            ids = [prompt.token_ids for prompt in prompts for _ in range(NUM_COMPLETIONS)]
            seeds = [
                completion_seed(f"0/train/{round_}", prompt.scenario.scenario_id, index)
                for prompt in prompts
                for index in range(NUM_COMPLETIONS)
            ]
            call = {"bare engine": bare.generate.remote(ids, seeds)}
            ((tokens, seconds),) = wait_all(call, timeout_s=config.rollout.timeout_s, doing="sampling")
            if round_ > 0:  # the first warms both up
                pool_speeds.append(pool_speed)
                bare_speeds.append(tokens / seconds)
    finally:
        stop_ray()
    ratios = [pool / bare for pool, bare in zip(pool_speeds, bare_speeds, strict=True)]
    return {
        "sequences_in_flight": float(NUM_PROMPTS * NUM_COMPLETIONS),
        "pool_tokens_per_s": median(pool_speeds),
        "bare_tokens_per_s": median(bare_speeds),
        "pool_vs_bare": median(ratios),
        "pool_vs_bare_rounds": ratios,
    }
