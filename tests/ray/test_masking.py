"""A masked rollout leaves no trace in what is learned: not in the baseline, not in the gradient."""

from __future__ import annotations

from pathlib import Path

from perm_ray.config.training import RewardConfig, TrainerConfig
from perm_ray.experience import Collector
from perm_ray.judges.judge import JudgeTask
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, load_perspective
from perm_ray.loop import train_sequences
from perm_ray.trainer.batching import TrainSequence
from perm_ray.trainer.group import TrainerGroup
from perm_ray.types import Judgment, Status
from tests.support.fakes import FakeJudgePanel, FakeRolloutPool, fake_completion, fake_prompt

ALL = {name: load_perspective(name) for name in BUILTIN_PERSPECTIVES}
TRAINER = TrainerConfig(
    num_cpus=1, num_threads=1, dtype="float32", lr=1e-2, warmup_ratio=0.0, micro_batch_tokens=4096
)
ANSWERS = {
    "a": ["Oh.", "I am with you.", "That sounds heavy.", "And then?", "You did well."],
    "b": ["Tell me.", "It is late, and you waited.", "Yes.", "I hear how proud you are."],
}
FAILED = {"I am with you.", "You did well.", "Tell me."}


def judge(perspective: str, task: JudgeTask) -> Judgment:
    if task.text in FAILED and perspective == "reception":
        return Judgment(perspective, Status.FAILED, reason="timeout")
    scale = ALL[perspective].scale
    share = len(task.text) % 10 / 10
    return Judgment(perspective, Status.OK, scale.low + share * (scale.high - scale.low))


def sequences(failed_ones_exist: bool) -> list[TrainSequence]:
    """What the trainer gets of two groups, with the failed rollouts in them or never sampled."""
    learned: list[TrainSequence] = []
    for name, answers in ANSWERS.items():
        texts = [text for text in answers if failed_ones_exist or text not in FAILED]
        completions = [
            fake_completion(
                name, i, f"# Analysis\n{text}\n# Response\n{text}", token_ids=[20 + ord(c) for c in text]
            )
            for i, text in enumerate(texts)
        ]
        collector = Collector(FakeRolloutPool(completions), FakeJudgePanel(ALL, judge), ALL, RewardConfig())
        prompt = fake_prompt(name, [ord(name), 5, 6])
        collected = collector.collect([prompt], num_completions=len(texts), step=1)
        learned += train_sequences(collected.groups)
    return learned


def test_the_gradient_is_that_of_a_run_where_the_masked_rollouts_never_existed(
    tiny_model: Path, tmp_path: Path, ray_cluster: int
) -> None:
    with_failures, without = sequences(True), sequences(False)
    assert len(with_failures) == 6
    groups = [TrainerGroup(TRAINER, tiny_model, seed=1, total_steps=4) for _ in range(2)]
    try:
        for group in groups:
            group.start_async()
        for group in groups:
            group.wait_ready()
        metrics = [
            group.train_step(1, learned)
            for group, learned in zip(groups, (with_failures, without), strict=True)
        ]
        for index, group in enumerate(groups):
            group.export(tmp_path / str(index))
    finally:
        for group in groups:
            group.shutdown()
    assert metrics[0] == metrics[1]
    assert metrics[0]["policy/grad_norm"] > 0
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("0", "1"))
    assert first == second
