"""The reward's arithmetic against hand-worked values, and its rules for what could not be judged."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perm_ray.config.training import RewardConfig
from perm_ray.errors import ConfigError
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, Scale, load_perspective
from perm_ray.rewards.reward import check_perspectives, combine, reward_of
from perm_ray.types import Judgment, Status

FOUR = {name: load_perspective(name) for name in BUILTIN_PERSPECTIVES}
empathy_scores = st.floats(1, 5)


def judged(resonation=3.0, expression=3.0, reception=3.0, bystander=100.0) -> dict[str, Judgment]:
    scores = {
        "resonation": resonation,
        "expression": expression,
        "reception": reception,
        "bystander": bystander,
    }
    return {name: Judgment(name, Status.OK, score=score) for name, score in scores.items()}


def with_status(name: str, status: Status, reason: str = "") -> dict[str, Judgment]:
    return judged() | {name: Judgment(name, status, reason=reason)}


def reward(judgments, tokens=0, **config):
    found, why = reward_of(judgments, FOUR, tokens, RewardConfig(**config))
    assert found is not None, why
    assert why == ""
    return found


def test_harmonic_refuses_to_sell_one_perspective_for_another():
    # 3 / (1/1 + 1/1 + 1/0.2) = 3/7, where the mean says 2.2/3
    assert reward(judged(5, 5, 1)).empathy == pytest.approx(0.4286, abs=5e-5)
    assert reward(judged(5, 5, 1), combine="mean").empathy == pytest.approx(0.7333, abs=5e-5)
    assert reward(judged(5, 5, 1), combine="geometric").empathy == pytest.approx(0.2 ** (1 / 3))


def test_weights_apply_to_every_mean():
    weights = {"reception": 2.0}  # W = 4
    assert reward(judged(5, 5, 1), combine="mean", weights=weights).empathy == pytest.approx(2.4 / 4)
    assert reward(judged(5, 5, 1), weights=weights).empathy == pytest.approx(4 / 12)
    assert reward(judged(5, 5, 1), combine="geometric", weights=weights).empathy == pytest.approx(0.2**0.5)


def test_bystander_only_takes_away():
    assert reward(judged(bystander=72)).bystander == pytest.approx(-0.14)
    assert reward(judged(bystander=100)).bystander == 0.0
    assert reward(judged(bystander=0)).bystander == -0.5


def test_length_is_free_up_to_768_tokens():
    assert reward(judged(), tokens=768).length == 0.0
    assert reward(judged(), tokens=1000).length == pytest.approx(-0.232)


def test_the_value_is_the_sum_of_its_parts():
    found = reward(judged(4, 4, 4, 72), tokens=1000)
    assert found.value == pytest.approx(0.8 - 0.14 - 0.232)


@pytest.mark.parametrize("status", [Status.FAILED, Status.UNPARSEABLE])
@pytest.mark.parametrize("name", FOUR)
def test_a_failure_masks_and_never_becomes_a_number(name, status):
    for missing_section in ("floor", "mask"):
        config = RewardConfig(missing_section=missing_section)
        found, why = reward_of(with_status(name, status, "no digit"), FOUR, 10, config)
        assert found is None
        assert why == f"{name} is {status}: no digit"


def test_a_missing_section_counts_as_the_lowest_score():
    assert reward(with_status("resonation", Status.SKIPPED)).empathy == pytest.approx(3 / (5 + 2 * 5 / 3))
    assert reward(with_status("bystander", Status.SKIPPED)).bystander == -0.5


def test_a_missing_section_is_masked_when_asked():
    config = RewardConfig(missing_section="mask")
    assert reward_of(with_status("resonation", Status.SKIPPED), FOUR, 10, config) == (
        None,
        "resonation is skipped",
    )


def test_a_failure_masks_even_beside_a_missing_section():
    judgments = with_status("resonation", Status.SKIPPED) | {
        "reception": Judgment("reception", Status.FAILED)
    }
    assert reward_of(judgments, FOUR, 10, RewardConfig()) == (None, "reception is failed")


def test_judgments_and_perspectives_must_match():
    judgments = judged()
    del judgments["reception"]
    with pytest.raises(ValueError, match="expected judgments of"):
        reward_of(judgments, FOUR, 10, RewardConfig())


@pytest.mark.parametrize("score", [None, 0.9, 5.1, float("nan")])
def test_an_ok_judgment_off_its_scale_is_a_bug(score):
    judgments = judged() | {"expression": Judgment("expression", Status.OK, score=score)}
    with pytest.raises(ValueError, match="must score 1 to 5"):
        reward_of(judgments, FOUR, 10, RewardConfig())


def test_weights_name_empathy_perspectives_only():
    with pytest.raises(ConfigError, match=r"rewards.weights .* found bystander, warmth"):
        check_perspectives(FOUR, RewardConfig(weights={"warmth": 1.0, "bystander": 2.0}))
    with pytest.raises(ConfigError, match="at least one empathy perspective"):
        check_perspectives({"bystander": FOUR["bystander"]}, RewardConfig())


def test_fewer_perspectives_and_other_scales_work():
    own = {"safety": replace(FOUR["expression"], name="safety", number_scale=Scale(0, 9))}
    found, _ = reward_of({"safety": Judgment("safety", Status.OK, score=6.0)}, own, 10, RewardConfig())
    assert found is not None
    assert (found.empathy, found.bystander) == (pytest.approx(6 / 9), 0.0)
    for how in ("harmonic", "geometric", "mean"):
        zero, _ = reward_of(
            {"safety": Judgment("safety", Status.SKIPPED)}, own, 10, RewardConfig(combine=how)
        )
        assert zero is not None
        assert zero.empathy == 0.0


def test_an_unknown_mean_is_refused():
    with pytest.raises(ConfigError, match="harmonic, mean, geometric"):
        combine([1.0], [1.0], "median")


@given(empathy_scores, empathy_scores, empathy_scores, st.floats(0, 100), st.integers(0, 2000))
def test_every_part_stays_in_its_range(resonation, expression, reception, bystander, tokens):
    found = reward(judged(resonation, expression, reception, bystander), tokens)
    assert 0.2 - 1e-12 <= found.empathy <= 1.0 + 1e-12
    assert -0.5 <= found.bystander <= 0.0
    assert found.length <= 0.0


@given(empathy_scores, empathy_scores, empathy_scores)
def test_harmonic_is_the_strictest_mean(resonation, expression, reception):
    means = [
        reward(judged(resonation, expression, reception), combine=how).empathy
        for how in ("harmonic", "geometric", "mean")
    ]
    assert means[0] <= means[1] + 1e-12
    assert means[1] <= means[2] + 1e-12


@given(st.sampled_from(["harmonic", "geometric", "mean"]), st.floats(1, 4), empathy_scores)
def test_a_better_score_never_lowers_the_reward(how, low, other):
    assert (
        reward(judged(low + 1, other), combine=how).empathy >= reward(judged(low, other), combine=how).empathy
    )
