"""Check a configuration before anything is started: data, rubrics, arithmetic, then models and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perm_ray.cluster.placement import check_gpus, check_local_resources, demands
from perm_ray.config.schema import Config
from perm_ray.data.documents import Document
from perm_ray.data.prompts import build_prompts, load_template
from perm_ray.data.sampler import ScenarioSampler
from perm_ray.data.scenarios import load_scenarios, scenario_digest
from perm_ray.errors import ConfigError
from perm_ray.experience import RewardFunction
from perm_ray.files import fingerprint
from perm_ray.judges.judge import Judge
from perm_ray.judges.perspective import Perspective
from perm_ray.judges.startup import (
    build_perspectives,
    check_judge_prompts,
    resolve_judges,
)
from perm_ray.models.chat import ChatRenderer
from perm_ray.models.resolve import check_context, is_here, resolve_model
from perm_ray.rewards.reward import check_perspectives
from perm_ray.rewards.score_map import ScoreMap, score_maps_for
from perm_ray.types import Prompt, Scenario


@dataclass(frozen=True)
class RunPlan:
    """A configuration with everything checked that needs no engine and no model file."""

    config: Config
    train: tuple[Scenario, ...]
    heldout: tuple[Scenario, ...]
    perspectives: Mapping[str, Perspective]
    score_maps: Mapping[str, ScoreMap]
    template: Document
    judge: Judge | None = None  # in the place of the judges of the configuration
    reward: RewardFunction | None = None  # in the place of PERM's

    def contents(self) -> dict[str, str]:
        """Return what the configuration's paths lead to, by digest: a resumed run must find the same."""
        rubrics = {f"rubric of {name}": p.rubric.digest_of_all for name, p in self.perspectives.items()}
        return {
            "set of training scenarios": scenario_digest(self.train),
            "set of held-out scenarios": scenario_digest(self.heldout),
            "prompt template": self.template.digest_of_all,
            **rubrics,
        }

    def new_sampler(self) -> ScenarioSampler:
        return ScenarioSampler(
            len(self.train), self.config.rollout.prompts_per_step, seed=self.config.run.seed
        )


def plan_run(config: Config, judge: Judge | None = None, reward: RewardFunction | None = None) -> RunPlan:
    """Read and check the data, the rubrics and the arithmetic.

    Args:
        config: The configuration.
        judge: A judge object of the user's, in the place of the judges of the configuration.
        reward: A function from a completion's judgments to its reward, in the place of PERM's.

    Raises:
        UserError: Something in the configuration or in its data cannot be used as it is.
    """
    perspectives = dict(judge.perspectives) if judge is not None else build_perspectives(config.judges)
    check_perspectives(perspectives, config.rewards)
    check_local_resources(config.ray, demands(config, judge is not None))
    check_gpus(config)
    train = load_scenarios(config.data.train)
    heldout = load_scenarios(config.data.heldout) if config.evaluation.num_scenarios else ()
    languages = [scenario.language for scenario in (*train, *heldout)]
    plan = RunPlan(
        config=config,
        train=train,
        heldout=heldout[: config.evaluation.num_scenarios],
        perspectives=perspectives,
        score_maps={} if judge is not None else score_maps_for(config, perspectives, languages),
        template=load_template(config.prompt.template),
        judge=judge,
        reward=reward,
    )
    plan.new_sampler()  # refuses more prompts a step than there are scenarios
    if judge is not None and config.evaluation.judge_model is not None:
        raise ConfigError(
            "evaluation.judge_model must be null when a judge object of your own is given, which grades too, "
            f"found {config.evaluation.judge_model}."
        )
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
        """Return what is in the folders: a resumed run must find the same."""
        judges = {f"weights of judge {name}": fingerprint(folder) for name, folder in self.judges.items()}
        return {"weights of the policy at the start": fingerprint(self.policy), **judges}


def models_to_fetch(plan: RunPlan) -> list[str]:
    """Return the models that would be downloaded: `prepare_models` needs no network without them."""
    asked = [] if plan.judge is not None else [e.model for e in plan.config.judge_engines.values()]
    return [name for name in dict.fromkeys([plan.config.policy.model, *asked]) if not is_here(name)]


def prepare_models(plan: RunPlan) -> Models:
    """Find (or fetch, or convert) every model and render every prompt. Raises `UserError`s."""
    config = plan.config
    policy = resolve_model(config.policy.model)
    check_context(policy, config.rollout.engine.max_model_len, "rollout.engine.max_model_len")
    judges: Mapping[str, Path] = {}
    if plan.judge is None:
        judges = resolve_judges(config)
        scenarios = (*plan.train, *plan.heldout)
        longest = config.rollout.max_completion_tokens
        check_judge_prompts(config, plan.perspectives, judges, scenarios, longest)
    renderer = ChatRenderer(policy, config.prompt.enable_thinking)

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
