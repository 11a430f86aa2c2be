"""The arithmetic that `--dry-run` prints is an upper bound of what a step does."""

from __future__ import annotations

import pytest

from perm_ray.cli.dry_run import trained_tokens
from perm_ray.config import CONFIGS
from perm_ray.config.load import load_config
from perm_ray.trainer.batching import plan_step, tokens_of
from tests.support.sequences import one_turn


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("trainer.share_prompts=false",),
        ("trainer.micro_batch_tokens=1000",),  # a prompt and three completions
        ("trainer.micro_batch_tokens=600",),  # less than a sequence
        ("trainer.num_ranks=3",),
        ("rollout.prompts_per_step=1", "trainer.num_ranks=4"),
        ("trainer.objective.minibatches=2",),
        ("trainer.objective.minibatches=5", "trainer.num_ranks=2"),
    ],
    ids=str,
)
def test_no_more_is_trained_on_than_planned(overrides: tuple[str, ...]) -> None:
    """Against the plan of a step itself, with every prompt and completion at full length."""
    config = load_config(CONFIGS / "local.yaml", overrides)
    rollout, trainer = config.rollout, config.trainer
    sequences = [
        one_turn(
            (prompt,) * config.prompt.max_tokens,
            (1,) * rollout.max_completion_tokens,
            (0.0,) * rollout.max_completion_tokens,
            1.0,
        )
        for prompt in range(rollout.prompts_per_step)
        for _ in range(rollout.completions_per_prompt)
    ]
    minibatches = trainer.objective.minibatches
    dealt = (sequences, trainer.micro_batch_tokens, trainer.num_ranks, minibatches, "", trainer.share_prompts)
    plan = plan_step(*dealt)
    units = [unit for rank in plan for share in rank for micro in share.micro_batches for unit in micro]
    computed = sum(map(tokens_of, units))
    assert computed <= trained_tokens(config)
    if minibatches == 1 and trainer.num_ranks == 1:
        assert computed == trained_tokens(config)
