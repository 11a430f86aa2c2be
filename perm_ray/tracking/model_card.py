"""The README of a trained policy: what it was made from, judged by, how it did, and what it is not. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from perm_ray.config.redact import redact_text
from perm_ray.config.schema import Config

_LIMITS = """\
- The rewards are those of judge models. A higher one means that these judges, under these rubrics, gave more;
  whether people feel better understood is another question. `perm-ray judge calibrate` measures how far the
  judges agree with people.
- A policy that is trained against a judge learns its weaknesses too. `perm-ray judge probe` looks for some.
- It answers people who describe distress. It is no therapist, knows no emergency service and was not tested
  for safety: do not put it in front of people at risk.
- Held-out scenarios come from the same source as the training scenarios. Other languages, cultures and
  situations than theirs were not measured."""


@dataclass(frozen=True, slots=True)
class TrainedPolicy:
    """The facts of a card beyond its configuration.

    `contents` names data, rubrics and models by digest; `evaluation` is that of `summary.json`, empty
    without held-out scenarios; `packages` the versions that it was trained with.
    """

    run: str
    steps: int
    contents: Mapping[str, str]
    evaluation: Mapping[str, object]
    packages: Mapping[str, str]


def model_card(config: Config, policy: TrainedPolicy) -> str:
    """Return the card, in Markdown with the header that model hubs read."""
    header = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": config.policy.model,
        "tags": ["perm-ray", "reinforcement-learning", "empathy"],
    }
    sections = {
        "Training": _training(config, policy),
        "Data": _table(("", "digest"), [(name, f"`{digest[:12]}`") for name, digest in _data(policy)]),
        "Judges": _judges(config, policy),
        "Figures": _figures(policy.evaluation),
        "Limits": _LIMITS,
    }
    text = f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# {policy.run}\n\n" + (
        f"`{config.policy.model}`, trained for {policy.steps} steps with the rewards of "
        f"{len(config.judges.pools)} judges (PERM, arXiv 2601.10532).\n"
    )
    text += "".join(f"\n## {title}\n\n{body}\n" for title, body in sections.items())
    return redact_text(text)


def heldout_reward(evaluation: Mapping[str, object]) -> float | None:
    """Return the mean reward on the held-out scenarios after training; None when it was not measured."""
    value = _section(evaluation, "after").get("reward/mean")
    return float(value) if isinstance(value, int | float) else None


def _training(config: Config, policy: TrainedPolicy) -> str:
    trainer, rollout, rewards = config.trainer, config.rollout, config.rewards
    lora = f"LoRA, rank {trainer.lora.rank}" if trainer.lora.rank else "all weights"
    rows = [
        ("trained", lora),
        ("loss", trainer.objective.loss),
        ("learning rate", f"{trainer.lr:g}"),
        ("KL coefficient", f"{trainer.objective.kl_coef:g}"),
        ("prompts x completions a step", f"{rollout.prompts_per_step} x {rollout.completions_per_prompt}"),
        ("tokens in a completion, at most", str(rollout.max_completion_tokens)),
        ("reward", f"{rewards.combine}, bystander coefficient {rewards.bystander_coef:g}"),
        ("an answer begins with", f"`{config.prompt.prefix!r}`" if config.prompt.prefix else "nothing given"),
        ("seed", str(config.run.seed)),
        ("packages", ", ".join(f"{name} {version}" for name, version in policy.packages.items())),
    ]
    return _table(("", ""), rows)


def _data(policy: TrainedPolicy) -> list[tuple[str, str]]:
    return [(name, digest) for name, digest in policy.contents.items() if not name.startswith("rubric")]


def _judges(config: Config, policy: TrainedPolicy) -> str:
    rows = [
        (
            name,
            f"`{config.model_of(pool).model}`",
            pool.scoring.mode,
            f"`{policy.contents.get(f'rubric of {name}', 'unknown')[:12]}`",
        )
        for name, pool in config.judges.pools.items()
    ]
    return _table(("perspective", "judge", "scoring", "rubric"), rows)


def _figures(evaluation: Mapping[str, object]) -> str:
    before, after = _section(evaluation, "before"), _section(evaluation, "after")
    rows = [
        (name, _figure(before[name]), _figure(after[name]))
        for name in after
        if name in before and not name.startswith("slice/")
    ]
    if not rows:
        return "Not measured: the run had no held-out scenarios."
    text = "On held-out scenarios, as the judges see it:\n\n"
    text += _table(("", "before", "after"), rows)
    difference = _section(evaluation, "difference")
    if difference:
        mean, low, high = (_figure(difference[name], "+") for name in ("mean", "low", "high"))
        text += (
            f"\n\nReward, paired over {difference['pairs']} scenarios: {mean} (95% interval {low} .. {high})."
        )
    return text


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _figure(value: object, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if isinstance(value, int | float) else "-"


def _section(values: Mapping[str, object], key: str) -> Mapping[str, object]:
    section = values.get(key)
    return section if isinstance(section, Mapping) else {}
