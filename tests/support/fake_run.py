"""A run directory that nobody ran: the real format, made by the real writers, with invented texts and scores.

For tests of what reads run directories, and for measuring it at size. A file FAKE in the folder, the run's
name and every judge's name say that it is one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from perm_ray.config.load import dump_config, load_config
from perm_ray.config.schema import Config
from perm_ray.data.documents import Document
from perm_ray.data.prompts import build_messages, load_template, split_sections
from perm_ray.evaluation.heldout import HeldoutResult, compare, heldout_result
from perm_ray.files import write_text_atomic
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, Perspective, load_perspective
from perm_ray.rewards.advantages import advantages_of
from perm_ray.rewards.reward import reward_of
from perm_ray.runs.directory import RunDirectory
from perm_ray.tracking.ambiguous import AmbiguityRule
from perm_ray.tracking.answers import answer_pairs
from perm_ray.tracking.rollout_metrics import rollout_metrics
from perm_ray.tracking.slices import slice_metrics
from perm_ray.tracking.summary import summarise
from perm_ray.types import (
    Completion,
    FinishReason,
    Judgment,
    Prompt,
    Rollout,
    RolloutGroup,
    Scenario,
    Status,
    TokenUsage,
    Turn,
)
from tests.support.fakes import fake_span

JUDGE = "invented-judge"
_RUBRIC = "0f1a2b3c4d5e"
_GROUP = 8
_TEMPLATE = Document(load_template(None).front, "An invented system prompt. " * 12)
_NUM_SCENARIOS = 80
_TAGS = (("en", "Irish"), ("en", "Nigerian"), ("de", "Austrian"), ("pt-BR", "Brazilian"), ("ar", "Egyptian"))
_OPENINGS = {
    "en": "That sounds heavy, and you did not make it up.",
    "de": "Das klingt schwer, und du bildest dir das nicht ein.",
    "pt-BR": "Isso parece pesado, e você não está inventando.",
    "ar": "يبدو هذا ثقيلًا، وأنت لا تتخيله.",
}
_WORDS = (
    "waiting kitchen silence sister garden winter letter promise Sunday evening answer tired proud "
    "ashamed door window river school hospital shift money kitchen clock photograph neighbour brother "
    "music bread station phone call quiet anger relief worry hope careful small steady honest alone "
    "together again before after enough almost never always maybe perhaps softly slowly said heard "
    "kept lost found carried waited held stayed left returned asked told wanted needed feared missed "
    "built broke mended forgave refused her his their your my the a of and with without because "
    "although while until when where how what it is was were has had not only even still yet"
)


def write_fake_run(path: Path, num_steps: int, rollouts_per_step: int, seed: int = 0) -> Path:
    """Write the run; returns `path`. Rewards rise, judges fail now and then, some answers lack a section.

    `rollouts_per_step`, 2 or more, is cut to whole groups of 8 (or is one group, if it is less than that).
    """
    return FakeRun(seed, num_steps, rollouts_per_step).write(path)


class FakeRun:
    """What the invention needs to know; `rollouts` makes the groups of one step."""

    def __init__(self, seed: int, num_steps: int, rollouts_per_step: int) -> None:
        self.random = random.Random(seed)
        self.num_steps = num_steps
        self.group = min(_GROUP, rollouts_per_step)
        self.prompts_per_step = max(1, rollouts_per_step // self.group)
        self.config: Config = load_config(
            None,
            [
                "run.name=fake",
                f"run.steps={num_steps}",
                f"rollout.prompts_per_step={self.prompts_per_step}",
                f"rollout.completions_per_prompt={self.group}",
                "evaluation.probes.every=10",
            ],
        )
        self.perspectives: dict[str, Perspective] = {
            name: load_perspective(name) for name in BUILTIN_PERSPECTIVES
        }
        self.rule = AmbiguityRule(self.config.judges.ambiguity, self.perspectives)
        self.prompts = [self._prompt(f"train-{number:03d}") for number in range(_NUM_SCENARIOS)]
        self.heldout = [self._prompt(f"heldout-{number:03d}") for number in range(16)]

    def write(self, path: Path) -> Path:
        directory = RunDirectory.create(path, dump_config(self.config))
        write_text_atomic(path / "FAKE", "Nobody ran this: texts, scores and times are invented.\n")
        before = self._evaluate(directory, 0)
        for step in range(1, self.num_steps + 1):
            start = (step - 1) * self.prompts_per_step
            prompts = [self.prompts[(start + i) % len(self.prompts)] for i in range(self.prompts_per_step)]
            groups = self.rollouts(prompts, step)
            directory.write_samples(step, groups, self.rule)
            metrics = (
                rollout_metrics(groups) | slice_metrics(groups) | self._trained(step) | self._times(step)
            )
            directory.append_metrics(step, metrics)
            if step % 10 == 0:
                directory.write_probes(step, self._probed(step), [])
        rows = directory.read_metrics()
        wall_time_s = math.fsum(row["time/step_s"] for row in rows)
        evaluation = compare(before, self._evaluate(directory, self.num_steps), seed=42)
        answers = [asdict(pair) for pair in answer_pairs(directory.samples, self.num_steps, seed=42)]
        extra = {"evaluation": evaluation, "answers": answers}
        directory.write_summary(summarise(rows, "FINISHED", wall_time_s, extra))
        return path

    def rollouts(self, prompts: Sequence[Prompt], step: int) -> list[RolloutGroup]:
        """A group for each prompt, judged and with advantages."""
        progress = step / max(1, self.num_steps)
        made = [[self._rollout(prompt, i, step, progress) for i in range(self.group)] for prompt in prompts]
        advantages = advantages_of([[each.reward for each in group] for group in made], self.config.rewards)
        return [
            RolloutGroup(prompt, tuple(group), advantage)
            for prompt, group, advantage in zip(prompts, made, advantages, strict=True)
        ]

    # ---- texts and scores --------------------------------------------------------------------

    def _words(self, low: int, high: int) -> str:
        words = self.random.choices(_WORDS.split(), k=self.random.randint(low, high))
        for i in range(0, len(words), 11):
            words[i] = words[i].capitalize()
            if i:
                words[i - 1] += "."
        return " ".join(words) + "."

    def _prompt(self, scenario_id: str) -> Prompt:
        language, culture = self.random.choice(_TAGS)
        age = self.random.randint(16, 84)
        scenario = Scenario(
            scenario_id,
            persona=f"An invented person, {age}. {self._words(6, 14)}",
            situation=self._words(16, 40),
            dialogue=(Turn("seeker", self._words(8, 24)),),
            language=language,
            culture=culture,
        )
        return Prompt(scenario, build_messages(scenario, _TEMPLATE), "", (1, 2, 3))

    def _rollout(self, prompt: Prompt, index: int, step: int, progress: float) -> Rollout:
        luck = self.random
        opening = _OPENINGS.get(prompt.scenario.language or "", _OPENINGS["en"])
        analysis = f"# Analysis\n{self._words(30, 80)}\n"
        text = analysis + f"# Response\n{opening} {self._words(30, 90)}"
        if luck.random() > 0.7 + 0.3 * progress:  # the policy learns the format
            text = analysis
        num_tokens = max(8, round(len(text) / 4.5))
        truncated = luck.random() < 0.04
        completion = Completion(
            prompt.scenario.scenario_id,
            index,
            text,
            spans=(fake_span(range(num_tokens), max(0, step - 1)),),
            finish_reason=FinishReason.LENGTH if truncated else FinishReason.STOP,
        )
        sections = split_sections(text)
        quality = luck.gauss(0.35 + 0.3 * progress, 0.15)
        judgments = {
            name: self._judgment(perspective, getattr(sections, perspective.reads), quality)
            for name, perspective in self.perspectives.items()
        }
        reward, why = reward_of(judgments, self.perspectives, num_tokens, self.config.rewards)
        return Rollout(completion, sections, judgments, reward, why)

    def _judgment(self, perspective: Perspective, text: str | None, quality: float) -> Judgment:
        luck, name = self.random, perspective.name
        if text is None:
            why = f"there is no {perspective.reads}"
            return Judgment(name, Status.SKIPPED, reason=why, tries=0, judge=JUDGE)
        if luck.random() < 0.01:
            return Judgment(name, Status.FAILED, reason="no answer within 60 s", tries=2, judge=JUDGE)
        if luck.random() < 0.01:
            return Judgment(name, Status.UNPARSEABLE, reason="no score in 'I would rather not'", judge=JUDGE)
        low, high = perspective.scale.low, perspective.scale.high
        height = min(1.0, max(0.0, quality + luck.gauss(0, 0.12)))
        latency_s = luck.uniform(0.1, 0.9)
        usage = TokenUsage(luck.randint(500, 900), luck.randint(300, 500), luck.randint(1, 60))
        if perspective.kind == "bystander":
            names = ("content", "structure", "efficiency", "objectivity", "accuracy")
            criteria = {each: min(20.0, max(0.0, 20 * height + luck.gauss(0, 2))) for each in names}
            total = math.fsum(criteria.values())
            judgment = Judgment(name, Status.OK, total, criteria=criteria, mass=luck.uniform(0.7, 1))
            return replace(judgment, tokens=usage, latency_s=latency_s, judge=JUDGE, rubric_digest=_RUBRIC)
        centre = low + height * (high - low)
        weights = [
            math.exp(-abs(value - centre) * luck.uniform(0.5, 3)) for value in perspective.scale.values
        ]
        shares = tuple(weight / math.fsum(weights) for weight in weights)
        score = math.fsum(s * v for s, v in zip(shares, perspective.scale.values, strict=True))
        entropy = -math.fsum(share * math.log(share) for share in shares if share > 0)
        reason = f"An invented reason: {self._words(8, 22)}"
        judgment = Judgment(
            name, Status.OK, score, float(round(score)), luck.uniform(0.6, 1), shares, entropy, reason=reason
        )
        return replace(judgment, tokens=usage, latency_s=latency_s, judge=JUDGE, rubric_digest=_RUBRIC)

    # ---- what the trainer, the clock and the probes would say ---------------------------------

    def _trained(self, step: int) -> dict[str, float]:
        luck, progress = self.random, step / self.num_steps
        return {
            "policy/loss": luck.gauss(0, 0.01),
            "policy/kl": 0.02 * progress * luck.uniform(0.7, 1.3),
            "policy/entropy": 2.2 - 0.6 * progress + luck.gauss(0, 0.05),
            "policy/grad_norm": luck.lognormvariate(-0.5, 0.3),
            "policy/lr": 1e-6 * min(1.0, 10 * progress),
            "policy/clip_fraction": luck.uniform(0, 0.02),
            "policy/logprob_diff_mean": luck.uniform(0.042, 0.047),
            "policy/logprob_diff_max": luck.uniform(0.4, 1.2),
        }

    def _times(self, step: int) -> dict[str, float]:
        luck = self.random
        parts = {
            "time/generate_s": luck.uniform(8, 12),
            "time/judge_s": luck.uniform(3, 8),
            "time/train_s": luck.uniform(18, 24),
            "time/sync_s": luck.uniform(0.4, 0.7),
            "time/checkpoint_s": 2.5 if step % 50 == 0 else 0.0,
        }
        waits = {name: luck.uniform(0, 3) for name in self.perspectives}
        waits["bystander"] = parts["time/judge_s"]
        metrics = parts | {"time/step_s": math.fsum(parts.values()) + luck.uniform(0.01, 0.05)}
        for name, wait_s in waits.items():
            metrics |= {f"judge/{name}/wait_s": wait_s, f"judge/{name}/busy": luck.uniform(0.3, 0.7)}
        metrics["judge/bystander/busy"] = luck.uniform(0.85, 1.0)
        metrics["judge/busy_together"] = luck.uniform(0.2, 0.5)
        return metrics | {"rollout/tokens_per_s": luck.uniform(200, 240), "group/resampled": 0.0}

    def _probed(self, step: int) -> dict[str, float]:
        kinds = ("empty", "flattery", "fake_score", "padding")
        mean = 0.2 + 0.1 * step / self.num_steps
        return {
            f"probe/{name}/{kind}": min(1.0, max(0.0, self.random.gauss(mean, 0.05)))
            for name in self.perspectives
            for kind in kinds
        }

    def _evaluate(self, directory: RunDirectory, step: int) -> HeldoutResult:
        whole, self.group = self.group, 1  # one answer to each held-out scenario
        groups = self.rollouts(self.heldout, step)
        self.group = whole
        directory.write_heldout(step, groups, self.rule)
        return heldout_result(groups, rollout_metrics(groups))
