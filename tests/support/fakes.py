"""Stand-ins for the remote parts: scripted completions and judgments, and a model folder without a model.

Each is a subclass of what it stands for, with only the remote call replaced, so that what is tested is
the real code around it. Nothing here starts Ray or loads torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from perm_ray.judges.judge import JudgeTask
from perm_ray.judges.panel import JudgeBatch, JudgePanel
from perm_ray.judges.perspective import Perspective
from perm_ray.judges.pool import JudgePool
from perm_ray.judges.routing import Router
from perm_ray.rollout.pool import RolloutPool
from perm_ray.types import (
    Completion,
    FinishReason,
    Judgment,
    Message,
    Prompt,
    Reward,
    Rollout,
    RolloutGroup,
    Scenario,
    Sections,
    Span,
    Status,
    TokenUsage,
    Turn,
)

Judge = Callable[[str, JudgeTask], Judgment]


def fake_prompt(scenario_id: str, token_ids: Sequence[int] = (1, 2, 3)) -> Prompt:
    """A prompt of a made-up scenario, with these token ids."""
    scenario = Scenario(scenario_id, "Noor, 75", "Her garden is in flower.", (Turn("seeker", "Look at it!"),))
    return Prompt(scenario, (Message("user", scenario.query),), "", tuple(token_ids))


def fake_completion(
    scenario_id: str,
    index: int,
    text: str | None = None,
    token_ids: Sequence[int] = (7, 8, 9),
    version: int = 0,
) -> Completion:
    """A finished completion, by default one that no other index has; its text need not be what its token
    ids say."""
    if text is None:
        again = " Truly." * index
        text = f"# Analysis\nShe is proud.{again}\n# Response\nHow lovely!{again}"
    return Completion(scenario_id, index, text, (fake_span(token_ids, version),), FinishReason.STOP)


def fake_span(token_ids: Sequence[int], version: int = 0) -> Span:
    """Sampled tokens, every one of them with a log-probability of -0.5."""
    return Span("assistant", tuple(token_ids), (-0.5,) * len(token_ids), ((version, len(token_ids)),))


def fake_rollout(
    completion: Completion,
    scores: Mapping[str, float | None],
    reward: float | None,
    reason: str = "She is seen.",
) -> Rollout:
    """A judged completion, scores on a scale of 5; a perspective whose score is None has failed."""
    judgments = {
        name: Judgment(
            name,
            Status.FAILED if score is None else Status.OK,
            score=score,
            reason="The call failed." if score is None else reason,
            latency_s=0.25,
            tokens=TokenUsage(100, 50, 7),
            judge="fake-judge",
        )
        for name, score in scores.items()
    }
    parts = {name: score / 5 for name, score in scores.items() if score is not None}
    return Rollout(
        completion,
        Sections("She is proud.", f"How lovely, {completion.scenario_id} {completion.index}!"),
        judgments,
        None if reward is None else Reward(reward, reward, 0.0, 0.0, parts),
        "" if reward is not None else "a judgment failed",
    )


def fake_group(scenario_id: str, rollouts: Sequence[Rollout]) -> RolloutGroup:
    """The rollouts of one made-up scenario, without advantages."""
    return RolloutGroup(fake_prompt(scenario_id), tuple(rollouts), (0.0,) * len(rollouts))


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What a `FakeRolloutPool` was asked for."""

    scenario_ids: tuple[str, ...]
    num_completions: int
    step: int
    purpose: str


class FakeRolloutPool(RolloutPool):
    """Yields the completions it was given, in that order, whatever it is asked for."""

    def __init__(self, completions: Sequence[Completion]) -> None:
        self._completions = completions
        self.actors = []
        self.requests: list[SampleRequest] = []

    def sample(
        self, prompts: Sequence[Prompt], *, num_completions: int, step: int, purpose: str = "train"
    ) -> Iterator[Completion]:
        asked = tuple(prompt.scenario.scenario_id for prompt in prompts)
        self.requests.append(SampleRequest(asked, num_completions, step, purpose))
        yield from self._completions


class FakeJudgePanel(JudgePanel):
    """A panel that asks `judge(perspective, task)` in place of remote judges; `asked` has the tasks."""

    def __init__(
        self, perspectives: Mapping[str, Perspective], judge: Judge, deterministic: bool = True
    ) -> None:
        super().__init__({}, perspectives, deterministic)
        self._judge = judge
        self.asked: list[tuple[str, JudgeTask]] = []

    def batch(self) -> JudgeBatch:
        return _FakeBatch(self)

    def answer(self, perspective: str, task: JudgeTask) -> Judgment:
        self.asked.append((perspective, task))
        return self._judge(perspective, task)


class FakeJudgePool(JudgePool):
    """A pool with one judge, which is asked in this process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.router = Router(num_replicas=1, max_queue=64)


class _FakeBatch(JudgeBatch):
    def __init__(self, panel: FakeJudgePanel) -> None:
        pools = {name: FakeJudgePool(name) for name in panel.perspectives}
        super().__init__(pools, panel.perspectives, deterministic=True)
        self._panel = panel

    def _send(self, pool: JudgePool, replica: int, tasks: Sequence[JudgeTask]) -> None:
        for task in tasks:
            self._judgments[task.key][pool.name] = self._panel.answer(pool.name, task)
        pool.router.done(replica, len(tasks))


def write_fake_model(folder: Path, context: int = 4096) -> Path:
    """A folder that passes for a model's: a byte-level tokenizer, a chat template, a context length.

    The weights are an empty file: nothing can load it, and whatever never does works with it.
    """
    folder.mkdir(parents=True)
    vocabulary = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": context}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder
