"""Builds what a run is made of, and tears it down: pools, panel, trainer, data, tracker, directory.

Everything is checked that can be checked without an engine (`plan_run`), then everything is started
at once and waited for once (`running`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perm_ray.checkpoint import Checkpoints
from perm_ray.collect import Collector
from perm_ray.config.schema import Config
from perm_ray.data.prompts import ChatRenderer, build_prompts, load_template
from perm_ray.data.sampler import ScenarioSampler
from perm_ray.data.scenarios import load_scenarios, scenario_digest
from perm_ray.engine.models import check_context, resolve_model
from perm_ray.errors import ConfigError
from perm_ray.files import fingerprint, text_digest
from perm_ray.judges.accounting import FailureLimit
from perm_ray.judges.engine import value_tokens
from perm_ray.judges.panel import JudgePanel
from perm_ray.judges.pool import JudgeEnginePool, JudgePool
from perm_ray.perspectives.guard import make_fence
from perm_ray.perspectives.perspective import ExpectedDigit, Perspective
from perm_ray.perspectives.registry import build_perspective
from perm_ray.placement import await_resources, check_local_resources, start_ray, stop_ray
from perm_ray.remote import wait_all
from perm_ray.rewards.combine import check_perspectives
from perm_ray.rollout.pool import RolloutPool
from perm_ray.run_state import RunState
from perm_ray.signals import StopSignals
from perm_ray.tracking.progress import RunProgress
from perm_ray.tracking.run_directory import RunDirectory
from perm_ray.tracking.tracker import Tracker
from perm_ray.trainer.group import TrainerGroup
from perm_ray.types import Prompt, Scenario
from perm_ray.weight_sync import WeightSync

ANSWER_TOKENS = 64  # room for a judge's answer, the bystander's five lines included


@dataclass(frozen=True)
class RunPlan:
    """A configuration with everything checked that needs no engine and no model file."""

    config: Config
    train: tuple[Scenario, ...]
    heldout: tuple[Scenario, ...]
    perspectives: Mapping[str, Perspective]
    template: str

    def contents(self) -> dict[str, str]:
        """What the configuration's paths lead to, by digest: a resumed run must find the same."""
        rubrics = {f"rubric of {name}": p.rubric_digest for name, p in self.perspectives.items()}
        return {
            "set of training scenarios": scenario_digest(self.train),
            "set of held-out scenarios": scenario_digest(self.heldout),
            "prompt template": text_digest(self.template),
            **rubrics,
        }

    def new_sampler(self) -> ScenarioSampler:
        return ScenarioSampler(
            len(self.train), self.config.rollout.prompts_per_step, seed=self.config.run.seed
        )


def plan_run(config: Config) -> RunPlan:
    """Read and check the data, the rubrics and the arithmetic. Raises `UserError`s."""
    perspectives = {
        name: build_perspective(name, pool.rubric, pool.max_chars)
        for name, pool in config.judges.pools.items()
    }
    check_perspectives(perspectives, config.rewards)
    check_local_resources(config)
    heldout = load_scenarios(config.data.heldout) if config.evaluation.num_scenarios else ()
    plan = RunPlan(
        config=config,
        train=load_scenarios(config.data.train),
        heldout=heldout[: config.evaluation.num_scenarios],
        perspectives=perspectives,
        template=load_template(config.prompt.template),
    )
    plan.new_sampler()  # refuses more prompts a step than there are scenarios
    if len(plan.heldout) < config.evaluation.num_scenarios:
        raise ConfigError(
            f"evaluation.num_scenarios must be at most {len(plan.heldout)}, the scenarios in "
            f"{config.data.heldout}, found {config.evaluation.num_scenarios}: lower it or add scenarios."
        )
    return plan


@dataclass(frozen=True)
class Models:
    """The folders of all models, and the prompts as the policy's tokeniser writes them."""

    policy: Path
    judges: Mapping[str, Path]
    train_prompts: Sequence[Prompt]
    heldout_prompts: Sequence[Prompt]

    def fingerprints(self) -> dict[str, str]:
        """What is in the folders: a resumed run must find the same."""
        judges = {f"weights of judge {name}": fingerprint(folder) for name, folder in self.judges.items()}
        return {"weights of the policy at the start": fingerprint(self.policy), **judges}


def prepare_models(plan: RunPlan) -> Models:
    """Find (or fetch, or convert) every model and render every prompt. Raises `UserError`s."""
    config = plan.config
    policy = resolve_model(config.policy.model)
    judges = {name: resolve_model(engine.model) for name, engine in config.judges.engines.items()}
    check_context(policy, config.rollout.engine.max_model_len, "rollout.engine.max_model_len")
    for name, folder in judges.items():
        check_context(
            folder, config.judges.engines[name].max_model_len, f"judges.engines.{name}.max_model_len"
        )
    renderers = {folder: ChatRenderer(folder) for folder in {policy, *judges.values()}}
    for name, pool in config.judges.pools.items():
        _check_judge_prompt(plan, name, renderers[judges[pool.engine]])

    def prompts(scenarios: Sequence[Scenario]) -> Sequence[Prompt]:
        return build_prompts(
            scenarios, plan.template, config.prompt.prefix, renderers[policy], config.prompt.max_tokens
        )

    return Models(
        policy=policy,
        judges=judges,
        train_prompts=prompts(plan.train),
        heldout_prompts=prompts(plan.heldout),
    )


def _check_judge_prompt(plan: RunPlan, name: str, renderer: ChatRenderer) -> None:
    """Refuse a judge engine that cannot hold rubric, scenario and a completion of full length."""
    config = plan.config
    scenario = max((*plan.train, *plan.heldout), key=lambda s: len(s.persona + s.situation + s.query))
    ask = plan.perspectives[name].ask(scenario, "", make_fence(""))
    if isinstance(ask, ExpectedDigit):
        value_tokens(renderer, ask)  # refuses a tokeniser that cannot write the digits
    needed = len(renderer.render(ask.prompt.messages, ask.prompt.answer_prefix))
    needed += config.rollout.max_completion_tokens + ANSWER_TOKENS
    engine = config.judges.pools[name].engine
    found = config.judges.engines[engine].max_model_len
    if needed > found:
        raise ConfigError(
            f"judges.engines.{engine}.max_model_len must be at least {needed}, for {name}'s rubric, the "
            f"longest scenario, a completion and the answer, found {found}: raise it or shorten the rubric."
        )


@dataclass(frozen=True)
class Runtime:
    """The parts of a run that is up; the driver reads them. Made by `running`."""

    plan: RunPlan
    models: Models
    directory: RunDirectory
    tracker: Tracker
    progress: RunProgress
    sampler: ScenarioSampler
    collector: Collector
    judge_engines: JudgeEnginePool
    trainer: TrainerGroup
    weight_sync: WeightSync
    checkpoints: Checkpoints
    failure_limit: FailureLimit

    @property
    def config(self) -> Config:
        return self.plan.config

    def restore(self, state: RunState, trainer_folder: Path) -> None:
        """Put a checkpoint's state into the trainer and the sampler."""
        self.trainer.load(trainer_folder)
        self.sampler.restore(state.sampler)


@contextmanager
def running(
    plan: RunPlan,
    models: Models,
    directory: RunDirectory,
    tracker: Tracker,
    progress: RunProgress,
    stop: StopSignals,
) -> Iterator[Runtime]:
    """Start Ray, then everything at once, and wait once; end it all on the way out, however that is."""
    progress.phase("starting Ray")
    try:
        start_ray(plan.config)
        stop.take_back()
        await_resources(plan.config)
        yield _start(plan, models, directory, tracker, progress)
    finally:
        stop_ray()


def _start(
    plan: RunPlan, models: Models, directory: RunDirectory, tracker: Tracker, progress: RunProgress
) -> Runtime:
    config = plan.config
    seed, deterministic = config.run.seed, config.run.deterministic
    rollouts = RolloutPool(config.rollout, models.policy, seed, deterministic)
    engines = JudgeEnginePool(config.judges.engines, models.judges, seed, deterministic)
    pools = {
        name: JudgePool(plan.perspectives[name], pool, config.judges.engines[pool.engine], seed)
        for name, pool in config.judges.pools.items()
    }
    trainer = TrainerGroup(config.trainer, models.policy, seed, config.run.steps)
    trainer.start_async()
    progress.phase("starting engines and trainer")
    _wait_ready(config, rollouts, engines, pools)
    trainer.wait_ready()
    weight_sync = WeightSync(trainer, rollouts, config.sync)
    weight_sync.connect()
    panel = JudgePanel(pools, plan.perspectives, deterministic)
    return Runtime(
        plan=plan,
        models=models,
        directory=directory,
        tracker=tracker,
        progress=progress,
        sampler=plan.new_sampler(),
        collector=Collector(rollouts, panel, plan.perspectives, config.rewards),
        judge_engines=engines,
        trainer=trainer,
        weight_sync=weight_sync,
        checkpoints=Checkpoints(directory.checkpoints, config.checkpoint),
        failure_limit=FailureLimit(config.judges.max_failure_rate, config.judges.failure_window),
    )


def _wait_ready(
    config: Config, rollouts: RolloutPool, engines: JudgeEnginePool, pools: Mapping[str, JudgePool]
) -> None:
    calls = rollouts.starting() | engines.starting()
    for pool in pools.values():
        calls |= pool.starting()
    bounds = [engine.start_timeout_s for engine in config.judges.engines.values()]
    wait_all(calls, timeout_s=max(*bounds, config.rollout.engine.start_timeout_s), doing="starting")
