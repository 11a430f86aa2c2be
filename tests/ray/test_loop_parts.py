"""Rollout engines, weight sync and judge pools on a local Ray, with the tiny model in real vLLM engines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from perm_ray.cluster.calls import wait_all
from perm_ray.cluster.placement import Places
from perm_ray.config.engines import EngineConfig, EngineModel
from perm_ray.config.judges import JudgePoolConfig, JudgesConfig, ScoringConfig
from perm_ray.config.schema import Config, RolloutConfig
from perm_ray.config.training import LoraConfig, SyncConfig, TrainerConfig
from perm_ray.data.prompts import build_prompts, load_template, split_sections
from perm_ray.data.scenarios import load_scenarios
from perm_ray.judges.asking import ScoreQuery
from perm_ray.judges.panel import JudgePanel, PanelReport
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES
from perm_ray.judges.pool import JudgePool, engine_actor_name
from perm_ray.judges.startup import build_perspectives, start_judges
from perm_ray.models.chat import ChatRenderer
from perm_ray.rollout.pool import RolloutPool
from perm_ray.runs.weight_sync import WeightSync
from perm_ray.trainer.batching import TrainSequence
from perm_ray.trainer.group import TrainerGroup
from perm_ray.types import Completion, FinishReason, Message, Prompt, Status

ENGINE = EngineConfig(dtype="float32", max_model_len=4096, max_num_seqs=16, kv_cache_gb=0.1)
ROLLOUT = RolloutConfig(
    prompts_per_step=2, completions_per_prompt=3, max_completion_tokens=12, engine=replace(ENGINE, replicas=2)
)
TRAINER = TrainerConfig(
    num_cpus=1, num_threads=1, dtype="float32", lr=1e-2, warmup_ratio=0.0, micro_batch_tokens=4096
)
SCENARIOS = load_scenarios("builtin:train")[:3]


@pytest.fixture(scope="module")
def prompts(tiny_model: Path) -> tuple[Prompt, ...]:
    return build_prompts(SCENARIOS, load_template(None), "# Analysis\n", ChatRenderer(tiny_model), 3000)


@pytest.fixture(scope="module")
def rollouts(tiny_model: Path, ray_cluster: int) -> Iterator[RolloutPool]:
    pool = RolloutPool(ROLLOUT, tiny_model, seed=1, deterministic=True)
    wait_all(pool.starting(), timeout_s=200, doing="starting")
    yield pool
    for actor in pool.actors:
        ray.kill(actor)


def sample(
    pool: RolloutPool, prompts: tuple[Prompt, ...], step: int = 1
) -> dict[tuple[str, int], Completion]:
    found = pool.sample(prompts, num_completions=3, step=step)
    return {(completion.scenario_id, completion.index): completion for completion in found}


def test_sampling_gives_every_completion_with_one_logprob_a_token(
    rollouts: RolloutPool, prompts: tuple[Prompt, ...]
) -> None:
    completions = sample(rollouts, prompts)
    assert sorted(completions) == sorted((s.scenario_id, i) for s in SCENARIOS for i in range(3))
    for completion in completions.values():
        assert 1 <= len(completion.token_ids) <= ROLLOUT.max_completion_tokens
        assert len(completion.logprobs) == len(completion.token_ids)
        assert all(logprob <= 0 for logprob in completion.logprobs)
        assert completion.text.startswith("# Analysis\n")
        full = len(completion.token_ids) == ROLLOUT.max_completion_tokens
        assert full or completion.finish_reason == FinishReason.STOP


def test_the_same_step_samples_the_same_and_another_step_does_not(
    rollouts: RolloutPool, prompts: tuple[Prompt, ...]
) -> None:
    assert sample(rollouts, prompts, step=1) == sample(rollouts, prompts, step=1)
    first, second = sample(rollouts, prompts, step=1), sample(rollouts, prompts, step=2)
    assert all(first[key].token_ids != second[key].token_ids for key in first)


def test_at_another_temperature_logprobs_are_those_of_what_is_sampled(
    prompts: tuple[Prompt, ...], tiny_model: Path, ray_cluster: int
) -> None:
    cooler = replace(ROLLOUT, temperature=0.7, engine=ENGINE)
    pool = RolloutPool(cooler, tiny_model, seed=1, deterministic=True)
    wait_all(pool.starting(), timeout_s=200, doing="starting")
    completions = sample(pool, prompts)
    ray.kill(pool.actors[0])
    assert largest_difference(tiny_model, prompts, completions, temperature=0.7) < 1e-3
    assert largest_difference(tiny_model, prompts, completions) > 0.05


def test_an_engine_whose_thread_breaks_is_gone_and_replaced(
    rollouts: RolloutPool, prompts: tuple[Prompt, ...]
) -> None:
    expected = sample(rollouts, prompts)

    def break_engine(actor: Any) -> None:
        actor._engine._engine.step = None  # the next step raises in the engine's thread

    ray.get(rollouts.actors[0].__ray_call__.remote(break_engine))
    found = sample(rollouts, prompts)
    assert {key: c.token_ids for key, c in found.items()} == {key: c.token_ids for key, c in expected.items()}


def test_trained_weights_reach_every_engine(
    rollouts: RolloutPool, prompts: tuple[Prompt, ...], tiny_model: Path, tmp_path: Path
) -> None:
    """After a training step and a push, the engines sample from exactly the policy that was exported."""
    before = sample(rollouts, prompts)
    trainer = TrainerGroup(replace(TRAINER, num_ranks=2), tiny_model, seed=1, total_steps=4)
    try:
        trainer.start_async()
        trainer.wait_ready()
        sync = WeightSync(trainer, rollouts, SyncConfig(chunk_mb=1))
        sync.connect()
        unchanged = sync.push(version=0)
        assert unchanged.num_bytes > 100_000
        assert {c.token_ids for c in sample(rollouts, prompts).values()} == {
            c.token_ids for c in before.values()
        }
        trainer.train_step(1, training_data(before, prompts))
        assert sync.push(version=1).version == 1
        trainer.export(tmp_path / "policy")
    finally:
        trainer.shutdown()
    after = sample(rollouts, prompts)
    assert {completion.version for completion in after.values()} == {1}
    assert [version for version, _ in rollouts.held_weights(30)] == [1, 1]
    assert largest_difference(tmp_path / "policy", prompts, after) < 1e-3
    exported = RolloutPool(replace(ROLLOUT, engine=ENGINE), tmp_path / "policy", seed=1, deterministic=True)
    wait_all(exported.starting(), timeout_s=200, doing="starting")  # vLLM loads the export, too
    ray.kill(exported.actors[0])
    assert largest_difference(tiny_model, prompts, after) > 0.05  # the weights did change


def test_a_dead_engine_is_replaced_with_the_current_weights_and_its_work_done_again(
    rollouts: RolloutPool, prompts: tuple[Prompt, ...], tiny_model: Path
) -> None:
    trainer = TrainerGroup(TRAINER, tiny_model, seed=1, total_steps=4)
    try:
        trainer.start_async()
        trainer.wait_ready()
        sync = WeightSync(trainer, rollouts, SyncConfig(chunk_mb=1))
        sync.connect()
        sync.push(version=0)
        trainer.train_step(1, training_data(sample(rollouts, prompts), prompts))
        ray.kill(rollouts.actors[0])  # idle: the push finds out
        sync.push(version=1)
        expected = sample(rollouts, prompts)
        ray.kill(rollouts.actors[1])  # sampling finds out
        found = sample(rollouts, prompts)
    finally:
        trainer.shutdown()
    assert found.keys() == expected.keys()
    assert {completion.version for completion in found.values()} == {1}
    assert all(found[key].token_ids == expected[key].token_ids for key in expected)


@pytest.mark.parametrize("adapter_only", [False, True])
def test_an_adapter_reaches_every_engine_merged_or_alone(
    rollouts: RolloutPool,
    prompts: tuple[Prompt, ...],
    tiny_model: Path,
    tmp_path: Path,
    adapter_only: bool,
) -> None:
    """Either way the engines sample from exactly the merged policy that was exported."""
    lora = LoraConfig(rank=4, targets=("q_proj", "o_proj", "up_proj"))  # parts of what vLLM fuses
    trainer = TrainerGroup(replace(TRAINER, lora=lora), tiny_model, seed=1, total_steps=4)
    try:
        trainer.start_async()
        trainer.wait_ready()
        sync = WeightSync(trainer, rollouts, SyncConfig(chunk_mb=1, adapter_only=adapter_only))
        sync.connect()
        first = sync.push(version=0)
        (first_held,) = set(rollouts.held_weights(30))
        assert (first.num_bytes < 50_000) == adapter_only
        trainer.train_step(1, training_data(sample(rollouts, prompts), prompts))
        sync.push(version=1)
        ((_, checksum),) = set(rollouts.held_weights(30))  # both engines', and another one
        assert checksum != first_held[1]
        trainer.export(tmp_path / "policy")
    finally:
        trainer.shutdown()
    after = sample(rollouts, prompts)
    assert {completion.version for completion in after.values()} == {1}
    assert largest_difference(tmp_path / "policy", prompts, after) < 1e-3
    assert largest_difference(tiny_model, prompts, after) > 0.05


def training_data(
    completions: dict[tuple[str, int], Completion], prompts: tuple[Prompt, ...]
) -> list[TrainSequence]:
    ids = {prompt.scenario.scenario_id: prompt.token_ids for prompt in prompts}
    return [
        TrainSequence.of(ids[scenario_id], completion.spans, float(index - 1))
        for (scenario_id, index), completion in completions.items()
    ]


def largest_difference(
    folder: Path,
    prompts: tuple[Prompt, ...],
    completions: dict[tuple[str, int], Completion],
    temperature: float = 1.0,
) -> float:
    """Between the engines' log-probabilities and those of transformers with the weights in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = {prompt.scenario.scenario_id: prompt.token_ids for prompt in prompts}
    worst = 0.0
    for (scenario_id, _), completion in completions.items():
        row = torch.tensor([ids[scenario_id] + completion.token_ids])
        with torch.no_grad():
            logprobs = (policy(row).logits[0] / temperature).log_softmax(-1)
        start = len(ids[scenario_id])
        for offset, (token, found) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
            worst = max(worst, abs(float(logprobs[start + offset - 1, token]) - found))
    return worst


# --- judges ------------------------------------------------------------------------------------------

ANSWERS = [
    f"# Analysis\nShe misses him{more}.\n\n# Response\nNot silly at all{more}." for more in ("", ", so", "!")
]


def judges_of(scoring: ScoringConfig) -> Config:
    """Four separate pools, each perspective with an engine of its own."""
    engine = EngineModel(model="tiny", max_model_len=8192, max_num_seqs=16, kv_cache_gb=0.1)
    pools = {
        name: JudgePoolConfig(model=name, scoring=scoring, timeout_s=60.0) for name in BUILTIN_PERSPECTIVES
    }
    return Config(models=dict.fromkeys(BUILTIN_PERSPECTIVES, engine), judges=JudgesConfig(pools=pools))


@pytest.fixture(scope="module")
def four_pools(tiny_model: Path, ray_cluster: int) -> Iterator[JudgePanel]:
    config = judges_of(ScoringConfig(mode="expected", min_mass=0.0))
    folders: dict[str, Path] = dict.fromkeys(BUILTIN_PERSPECTIVES, tiny_model)
    judges = start_judges(
        config, build_perspectives(config.judges), folders, seed=1, deterministic=False, places=Places()
    )
    wait_all(judges.starting(), timeout_s=300, doing="starting")
    yield judges
    for name in BUILTIN_PERSPECTIVES:
        ray.kill(ray.get_actor(engine_actor_name(name, 0)))


def judge(judges: JudgePanel, number: int, *answers: str) -> PanelReport:
    scenario, batch = SCENARIOS[number], judges.batch()
    for index, answer in enumerate(answers):
        batch.submit((scenario.scenario_id, index), scenario, split_sections(answer))
    return batch.collect()


def test_four_separate_pools_judge_every_completion(four_pools: JudgePanel) -> None:
    report = judge(four_pools, 0, *ANSWERS)
    assert sorted(report.judgments) == [(SCENARIOS[0].scenario_id, index) for index in range(3)]
    for found in report.judgments.values():
        assert list(found) == list(BUILTIN_PERSPECTIVES)
        for name, judgment in found.items():
            assert judgment.status == Status.OK
            scale = four_pools.perspectives[name].scale
            assert judgment.score is not None
            assert scale.low <= judgment.score <= scale.high
            assert sum(judgment.distribution) == pytest.approx(1.0)
            assert len(judgment.distribution) == len(scale.values)
            assert judgment.tokens.prompt > 0
        assert found["bystander"].score == pytest.approx(sum(found["bystander"].criteria.values()))
        assert len(found["bystander"].criteria) == 5
    for name in BUILTIN_PERSPECTIVES:
        assert report.loads[name].worked
        assert report.loads[name].queue_max <= 3


def test_the_probability_of_a_number_of_several_tokens_is_what_the_model_says(
    four_pools: JudgePanel, tiny_model: Path
) -> None:
    """Against transformers: 1 is "1" and no further digit, 12 is "1" and then "2"."""
    import torch
    from transformers import AutoModelForCausalLM

    renderer = ChatRenderer(tiny_model)
    messages = (Message("user", "How many?"),)
    ask = ScoreQuery(messages, "Content: ", tuple(range(21)))
    engine: Any = ray.get_actor(engine_actor_name("bystander", 0))
    reply: Any = ray.get(engine.answer.remote([ask]))
    (answer,) = reply.answers
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)

    def following(text: str) -> torch.Tensor:
        ids = torch.tensor([renderer.render(messages, text)])
        with torch.no_grad():
            return model(ids).logits[0, -1].softmax(-1)

    digits = [renderer.encode(str(digit))[0] for digit in range(10)]
    first, after_one = following("Content: "), following("Content: 1")
    assert math.exp(answer.logprobs[7]) == pytest.approx(float(first[digits[7]]), rel=0.05)
    twelve = float(first[digits[1]] * after_one[digits[2]])
    assert math.exp(answer.logprobs[12]) == pytest.approx(twelve, rel=0.05)
    one = float(first[digits[1]] * (1 - after_one[digits].sum()))
    assert math.exp(answer.logprobs[1]) == pytest.approx(one, rel=0.05)


@pytest.mark.parametrize("mode", ["reasoned", "sampled"])
def test_the_other_modes_on_the_same_engines(four_pools: JudgePanel, mode: Any) -> None:
    config = judges_of(ScoringConfig(mode=mode, min_mass=0.0, max_reason_tokens=12, num_samples=3))
    pools = {
        name: JudgePool(four_pools.perspectives[name], pool, config, seed=1)
        for name, pool in config.judges.pools.items()
    }
    panel = JudgePanel(pools, four_pools.perspectives, deterministic=True)
    for found in judge(panel, 0, *ANSWERS).judgments.values():
        for judgment in found.values():
            assert judgment.status == Status.OK, judgment.reason
            assert judgment.score is not None
            if mode == "reasoned":
                assert judgment.reason
                assert judgment.sampled is not None
            else:
                assert judgment.spread is not None
                assert judgment.mass == 1.0


def test_a_missing_section_is_skipped_and_no_judge_is_asked(four_pools: JudgePanel) -> None:
    (found,) = judge(four_pools, 1, "# Analysis\nOnly this.").judgments.values()
    assert found["resonation"].status == Status.OK
    assert {found[name].status for name in ("expression", "reception", "bystander")} == {Status.SKIPPED}
    assert found["expression"].tries == 0


def test_a_dead_judge_engine_is_replaced(four_pools: JudgePanel) -> None:
    ray.kill(ray.get_actor(engine_actor_name("reception", 0)), no_restart=False)
    (found,) = judge(four_pools, 2, ANSWERS[0]).judgments.values()
    assert {judgment.status for judgment in found.values()} == {Status.OK}
