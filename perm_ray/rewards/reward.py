"""Judgments become a reward: PERM's formula (arXiv 2601.10532), as plain arithmetic.

    empathy   = mean of the empathy scores, each divided by its scale's maximum     in [0.2, 1]
    bystander = bystander_coef * (total / 100 - 1)                                  in [-bystander_coef, 0]
    length    = -length_coef * max(0, completion_tokens - length_free_tokens)       at most 0
                - truncated_penalty, if it was cut off and rewards.truncated is penalise
    reward    = empathy + bystander + length

The driver calls `reward_of` when the last judgment of a completion is in. A judgment that failed
masks the rollout: a failure never becomes a number. With a score map (`score_map.py`) each score is
first turned into what people would have given; judgments keep the judge's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from perm_ray.config.training import RewardConfig
from perm_ray.errors import ConfigError
from perm_ray.rewards.score_map import ScoreMap
from perm_ray.types import Judgment, Reward, Scale, Status

if TYPE_CHECKING:
    from perm_ray.judges.perspective import Perspective

NO_MAPS: Mapping[str, ScoreMap] = MappingProxyType({})
LENGTH = "length"  # the part of a reward that no perspective gives


def reward_of(
    judgments: Mapping[str, Judgment],
    perspectives: Mapping[str, Perspective],
    completion_tokens: int,
    config: RewardConfig,
    score_maps: Mapping[str, ScoreMap] = NO_MAPS,
    truncated: bool = False,
) -> tuple[Reward | None, str]:
    """Return the reward and "", or None and why the rollout is masked. `truncated`: it was cut off for its
    length.

    `judgments` has one for each of `perspectives`, under the same names. A judgment that is
    unparseable or failed masks the rollout, whatever the others say.

    A *skipped* judgment is another matter: the completion lacks the section this perspective reads.
    With `missing_section: floor` it counts as the lowest score of its scale. That is not a failure
    turned into a number: no judge was asked, so none failed. The policy was told to write the section
    and did not, which is a fact about its answer, and the worst answer there is; masking it would
    leave the policy no reason to write both sections. `missing_section: mask` masks it all the same.
    """
    check_perspectives(perspectives, config)
    if judgments.keys() != perspectives.keys():
        raise ValueError(f"expected judgments of {sorted(perspectives)}, found {sorted(judgments)}")
    if truncated and config.truncated == "mask":
        return None, f"it was cut off after {completion_tokens} tokens"
    scores: dict[str, float] = {}
    for name, perspective in perspectives.items():
        judgment = judgments[name]
        if judgment.status == Status.OK:
            scores[name] = _share_of_maximum(judgment, perspective.scale, score_maps.get(name))
        elif judgment.status == Status.SKIPPED and config.missing_section == "floor":
            scores[name] = perspective.scale.low / perspective.scale.high
        else:
            return None, f"{name} is {judgment.status}" + (f": {judgment.reason}" if judgment.reason else "")
    empathy_names = [name for name in scores if perspectives[name].kind == "empathy"]
    empathy = combine(
        [scores[name] for name in empathy_names],
        [config.weights.get(name, 1.0) for name in empathy_names],
        config.combine,
    )
    outside = [share for name, share in scores.items() if perspectives[name].kind == "bystander"]
    bystander = config.bystander_coef * (math.fsum(outside) / len(outside) - 1.0) if outside else 0.0
    length = -config.length_coef * max(0, completion_tokens - config.length_free_tokens)
    if truncated and config.truncated == "penalise":
        length -= config.truncated_penalty
    parts = {name: scores[name] for name in empathy_names}
    if config.bystander_coef > 0:
        parts |= {name: share for name, share in scores.items() if name not in parts}
    if config.length_coef > 0 or config.truncated == "penalise":
        parts[LENGTH] = length
    return Reward(empathy + bystander + length, empathy, bystander, length, parts), ""


def reward_of_asked(
    judgments: Mapping[str, Judgment],
    perspectives: Mapping[str, Perspective],
    config: RewardConfig,
    score_maps: Mapping[str, ScoreMap] = NO_MAPS,
) -> tuple[Reward | None, str, tuple[str, ...]]:
    """Return the reward of a text that no policy of ours wrote, from the perspectives that could be asked.

    Returns the reward (None when masked), why it is masked, and the names of those perspectives. A skipped
    judgment leaves its perspective out, whatever `missing_section` says: nobody told the author of the text
    to write that section. There is no length part: the tokens are not known.
    """
    asked = tuple(name for name in perspectives if judgments[name].status != Status.SKIPPED)
    if not any(perspectives[name].kind == "empathy" for name in asked):
        return None, "no empathy perspective could be asked", asked
    weights = {name: weight for name, weight in config.weights.items() if name in asked}
    reward, why = reward_of(
        {name: judgments[name] for name in asked},
        {name: perspectives[name] for name in asked},
        0,
        replace(config, weights=weights),
        score_maps,
    )
    return reward, why, asked


def combine(values: Sequence[float], weights: Sequence[float], how: str) -> float:
    """Return the weighted harmonic, arithmetic or geometric mean of values that are 0 or more.

        harmonic: W / sum(w/x)      mean: sum(w*x) / W      geometric: exp(sum(w*ln x) / W)

    with W = sum(w); equal weights give the plain means. The lower the mean, the less one perspective
    can be sold for another: harmonic <= geometric <= mean. A value of 0 (on a scale that starts there)
    makes the first and the last 0, which is their limit.
    """
    pairs = list(zip(values, weights, strict=True))
    total = math.fsum(weights)
    if how in ("harmonic", "geometric") and min(values) == 0.0:
        return 0.0
    if how == "harmonic":
        return total / math.fsum(weight / value for value, weight in pairs)
    if how == "mean":
        return math.fsum(weight * value for value, weight in pairs) / total
    if how == "geometric":
        return math.exp(math.fsum(weight * math.log(value) for value, weight in pairs) / total)
    raise ConfigError(f"rewards.combine must be one of harmonic, mean, geometric, found {how!r}")


def check_perspectives(perspectives: Mapping[str, Perspective], config: RewardConfig) -> None:
    """Raises `ConfigError` when no reward can come of these perspectives: call it before a run starts."""
    empathy = [name for name, perspective in perspectives.items() if perspective.kind == "empathy"]
    if not empathy:
        raise ConfigError("judges.pools must have at least one empathy perspective, found none.")
    known, which = empathy, "the empathy perspectives of judges.pools"
    if config.composition == "normalize_then_sum":
        known, which = [*perspectives, LENGTH], "the perspectives of judges.pools, and length"
    unknown = sorted(config.weights.keys() - set(known))
    if unknown:
        raise ConfigError(
            f"rewards.weights may name {', '.join(known)} ({which}), "
            f"found {', '.join(unknown)}: remove it or add its pool."
        )


def _share_of_maximum(judgment: Judgment, scale: Scale, score_map: ScoreMap | None) -> float:
    """Return an ok judgment's (mapped) score over its scale's maximum. One off the scale is a bug in its
    judge."""
    score = judgment.score
    if score is None or not scale.low <= score <= scale.high:
        raise ValueError(
            f"an ok judgment of {judgment.perspective} must score {scale.low} to {scale.high}, found {score}"
        )
    return (score if score_map is None else score_map.apply(score)) / scale.high
