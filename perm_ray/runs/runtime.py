"""Builds what a run is made of, and tears it down: pools, panel, trainer, data, tracker, directory.

Everything is checked that can be checked without an engine (`plan_run`), then everything is started
at once and waited for once (`running`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perm_ray.cluster.calls import wait_all
from perm_ray.cluster.placement import ROLLOUT, TRAINER, Places, check_local_resources, demands, reserve
from perm_ray.cluster.session import start_ray, stop_ray
from perm_ray.config.schema import Config
from perm_ray.data.prompts import ChatRenderer, build_prompts, load_template
from perm_ray.data.sampler import ScenarioSampler
from perm_ray.data.scenarios import load_scenarios, scenario_digest
from perm_ray.errors import ConfigError
from perm_ray.evaluation.probes.probe_report import ProbeWatch
from perm_ray.evaluation.probes.probe_set import load_probes
from perm_ray.experience import Collector
from perm_ray.files import fingerprint, text_digest
from perm_ray.judges.accounting import FailureLimit
from perm_ray.judges.perspective import Perspective
from perm_ray.judges.session import (
    JudgeSession,
    build_perspectives,
    check_judge_prompts,
    resolve_judges,
    start_judges,
)
from perm_ray.models.resolve import check_context, resolve_model
from perm_ray.rewards.reward import check_perspectives
from perm_ray.rewards.score_map import ScoreMap, score_maps_for
from perm_ray.rollout.pool import RolloutPool
from perm_ray.runs.checkpoint import Checkpoints
from perm_ray.runs.directory import RunDirectory
from perm_ray.runs.run_state import RunState
from perm_ray.runs.signals import StopSignals
from perm_ray.runs.weight_sync import WeightSync
from perm_ray.tracking.ambiguous import AmbiguityRule
from perm_ray.tracking.gauges import RayGauges
from perm_ray.tracking.progress import RunProgress
from perm_ray.tracking.tracker import Tracker
from perm_ray.trainer.group import TrainerGroup
from perm_ray.types import Prompt, Scenario


@dataclass(frozen=True)
class RunPlan:
    """A configuration with everything checked that needs no engine and no model file."""

    config: Config
    train: tuple[Scenario, ...]
    heldout: tuple[Scenario, ...]
    perspectives: Mapping[str, Perspective]
    score_maps: Mapping[str, ScoreMap]
    template: str

    def contents(self) -> dict[str, str]:
        """What the configuration's paths lead to, by digest: a resumed run must find the same."""
        rubrics = {f"rubric of {name}": p.rubric.digest_of_all for name, p in self.perspectives.items()}
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
    perspectives = build_perspectives(config.judges)
    check_perspectives(perspectives, config.rewards)
    check_local_resources(config.ray, demands(config))
    train = load_scenarios(config.data.train)
    heldout = load_scenarios(config.data.heldout) if config.evaluation.num_scenarios else ()
    languages = [scenario.language for scenario in (*train, *heldout)]
    plan = RunPlan(
        config=config,
        train=train,
        heldout=heldout[: config.evaluation.num_scenarios],
        perspectives=perspectives,
        score_maps=score_maps_for(config.rewards.score_map, config.judges, perspectives, languages),
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
    check_context(policy, config.rollout.engine.max_model_len, "rollout.engine.max_model_len")
    judges = resolve_judges(config.judges)
    scenarios = (*plan.train, *plan.heldout)
    check_judge_prompts(
        config.judges, plan.perspectives, judges, scenarios, config.rollout.max_completion_tokens
    )
    renderer = ChatRenderer(policy)

    def prompts(scenarios: Sequence[Scenario]) -> Sequence[Prompt]:
        return build_prompts(
            scenarios, plan.template, config.prompt.prefix, renderer, config.prompt.max_tokens
        )

    return Models(
        policy=policy,
        judges=judges,
        train_prompts=prompts(plan.train),
        heldout_prompts=prompts(plan.heldout),
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
    session: JudgeSession
    probes: ProbeWatch
    trainer: TrainerGroup
    weight_sync: WeightSync
    checkpoints: Checkpoints
    failure_limit: FailureLimit
    gauges: RayGauges | None

    @property
    def config(self) -> Config:
        return self.plan.config

    @property
    def ambiguity(self) -> AmbiguityRule:
        return AmbiguityRule(self.config.judges.ambiguity, self.plan.perspectives)

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
        rows = demands(plan.config)
        start_ray(plan.config.ray, rows)
        stop.take_back()
        places = reserve(plan.config.ray, rows, progress.note)
        yield _start(plan, models, directory, tracker, progress, places)
    finally:
        stop_ray()


def _start(
    plan: RunPlan,
    models: Models,
    directory: RunDirectory,
    tracker: Tracker,
    progress: RunProgress,
    places: Places,
) -> Runtime:
    config = plan.config
    seed, deterministic = config.run.seed, config.run.deterministic
    sampling = places.of(ROLLOUT, config.rollout.engine.replicas)
    rollouts = RolloutPool(config.rollout, models.policy, seed, deterministic, sampling)
    judges = start_judges(config.judges, plan.perspectives, models.judges, seed, deterministic, places)
    training = places.of(TRAINER, config.trainer.num_ranks)
    trainer = TrainerGroup(
        config.trainer, models.policy, seed, config.run.steps, training, config.rollout.temperature
    )
    trainer.start_async()
    progress.phase("starting engines and trainer")
    bound = max(judges.start_timeout_s, config.rollout.engine.start_timeout_s)
    wait_all(rollouts.starting() | judges.starting(), timeout_s=bound, doing="starting")
    trainer.wait_ready()
    weight_sync = WeightSync(trainer, rollouts, config.sync)
    weight_sync.connect()
    return Runtime(
        plan=plan,
        models=models,
        directory=directory,
        tracker=tracker,
        progress=progress,
        sampler=plan.new_sampler(),
        collector=Collector(rollouts, judges.panel, plan.perspectives, config.rewards, plan.score_maps),
        session=JudgeSession(plan.perspectives, judges),
        probes=ProbeWatch(
            config.evaluation.probes,
            load_probes() if config.evaluation.probes.every else (),
            plan.perspectives,
            directory.first_probes(),
        ),
        trainer=trainer,
        weight_sync=weight_sync,
        checkpoints=Checkpoints(directory.checkpoints, config.checkpoint),
        failure_limit=FailureLimit(config.judges.max_failure_rate, config.judges.failure_window),
        gauges=RayGauges(directory.name) if config.ray.address is not None else None,
    )
