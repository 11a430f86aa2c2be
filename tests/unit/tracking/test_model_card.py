"""The README of a trained policy."""

from __future__ import annotations

import dataclasses

import yaml

from perm_ray.config.schema import Config, PolicyConfig
from perm_ray.tracking.model_card import TrainedPolicy, heldout_reward, model_card

EVALUATION = {
    "before": {"reward/mean": 0.25, "judge/reception/mean": 2.5, "slice/language/pt/reward": 0.1},
    "after": {"reward/mean": 0.5, "judge/reception/mean": 3.25, "slice/language/pt/reward": 0.2},
    "difference": {"mean": 0.25, "low": 0.125, "high": 0.375, "pairs": 16},
}
POLICY = TrainedPolicy(
    run="night-1",
    steps=8,
    contents={"set of training scenarios": "a" * 64, "rubric of reception": "b" * 12},
    evaluation=EVALUATION,
    packages={"torch": "2.13.0"},
)


def test_a_card_says_what_the_policy_is_made_of_and_how_it_did() -> None:
    card = model_card(Config(), POLICY)
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["base_model"] == Config().policy.model
    assert body.lstrip().startswith("# night-1\n")
    for line in (
        "| set of training scenarios | `aaaaaaaaaaaa` |",
        f"| reception | `{Config().policy.model}` | reasoned | `bbbbbbbbbbbb` |",
        "| reward/mean | 0.250 | 0.500 |",
        "| judge/reception/mean | 2.500 | 3.250 |",
        "Reward, paired over 16 scenarios: +0.250 (95% interval +0.125 .. +0.375).",
        "| learning rate | 1e-06 |",
        "| packages | torch 2.13.0 |",
    ):
        assert line in body.splitlines(), line
    assert "## Limits\n\n- The rewards are those of judge models." in body
    assert "slice/" not in body


def test_without_held_out_scenarios_no_figure_is_made_up() -> None:
    card = model_card(Config(), dataclasses.replace(POLICY, evaluation={}))
    assert "Not measured: the run had no held-out scenarios." in card
    assert (heldout_reward({}), heldout_reward(EVALUATION)) == (None, 0.5)


def test_a_card_has_no_secrets() -> None:
    config = Config(policy=PolicyConfig(model="https://me:hunter2@host/model"))
    assert "hunter2" not in model_card(config, POLICY)
