"""Score maps: what they do to scores and rewards, and which ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perm_ray.config.judges import ScoringConfig
from perm_ray.config.schema import Config
from perm_ray.config.training import RewardConfig
from perm_ray.data.documents import Document
from perm_ray.errors import ConfigError
from perm_ray.files import write_json_atomic
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, load_perspective
from perm_ray.rewards.reward import reward_of
from perm_ray.rewards.score_map import ScoreMap, load_score_maps, score_maps_document, score_maps_for
from perm_ray.runs.run_plan import plan_run
from perm_ray.types import Judgment, Status

FOUR = {name: load_perspective(name) for name in BUILTIN_PERSPECTIVES}
CONFIG = Config()
MAP = ScoreMap(
    judge=CONFIG.model_of(CONFIG.judges.pools["expression"]).model,
    mode="reasoned",
    rubric_digests=(FOUR["expression"].rubric.digest(),),
    scale=(1, 5),
    n=40,
    scores=(2.0, 3.0, 4.0),
    mapped=(1.0, 1.5, 4.5),
    error={"before": 1.0, "after": 0.5, "mean": 0.7},
)


def saved(tmp_path: Path, score_map: ScoreMap = MAP, name: str = "expression", **changes: object) -> str:
    document = json.loads(json.dumps(score_maps_document({name: score_map})))
    document["perspectives"][name].update(changes)
    write_json_atomic(tmp_path / "map.json", document)
    return str(tmp_path / "map.json")


def asking(path: str) -> Config:
    return replace(CONFIG, rewards=replace(CONFIG.rewards, score_map=path))


def test_lines_between_the_corners_and_the_ends_beyond() -> None:
    assert [MAP.apply(score) for score in (1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)] == [
        *(1.0, 1.0, 1.25, 1.5, 3.0, 4.5, 4.5)
    ]


corners = st.lists(st.tuples(st.floats(1, 5), st.floats(1, 5)), min_size=1, max_size=8).map(
    lambda pairs: (sorted({p[0] for p in pairs}), sorted(p[1] for p in pairs))
)


@given(corners, st.floats(1, 5), st.floats(1, 5))
def test_a_better_score_is_never_worth_less_and_stays_on_the_scale(found, a, b) -> None:
    scores, mapped = found
    score_map = replace(MAP, scores=tuple(scores), mapped=tuple(mapped[: len(scores)]))
    low, high = score_map.apply(min(a, b)), score_map.apply(max(a, b))
    assert 1 <= low <= high + 1e-12
    assert high <= 5


def test_a_saved_map_is_read_back(tmp_path: Path) -> None:
    assert load_score_maps(saved(tmp_path)) == {"expression": MAP}
    assert score_maps_for(asking(saved(tmp_path)), FOUR, [None]) == {"expression": MAP}
    assert score_maps_for(CONFIG, FOUR, [None]) == {}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"mapped": [1.0, 3.0, 2.0]}, "mapped must be monotone"),
        ({"scores": [2.0, 2.0, 4.0]}, "scores must be strictly increasing"),
        ({"scores": [2.0, 3.0, 6.0]}, "scores must be numbers on the scale"),
        ({"mapped": [1.0, 3.0]}, "mapped must be one number for each of scores"),
        ({"mapped": []}, "mapped must be one number for each of scores"),
        ({"mapped": None}, "mapped must be a valid array"),
        ({"scores": [True, 3.0, 4.0]}, "scores must be a valid number"),
        ({"scale": [5, 1]}, "scale must be two whole numbers"),
        ({"n": 0}, "n must be a whole number from 1"),
        ({"judge": 7}, "judge must be a valid string"),
        ({"rubric_digests": []}, "rubric_digests must be a list of texts"),
    ],
)
def test_a_map_that_is_none_is_refused(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_score_maps(saved(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"kind": "perm_ray score map", "perspectives": {}}'])
def test_a_file_that_holds_no_map_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(ConfigError, match=r"rewards\.score_map must be"):
        load_score_maps(tmp_path / "map.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_score_maps(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"judge": "other/model"}, "made with the judge model other/model of expression"),
        ({"mode": "sampled"}, "made with the scoring mode sampled of expression, found reasoned"),
        ({"rubric_digests": ["abc"]}, "made with the rubric abc of expression"),
        ({"scale": [0, 5]}, "made with the scale"),
    ],
)
def test_another_judge_is_refused(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        score_maps_for(asking(saved(tmp_path, **changes)), FOUR, [None])


def test_a_perspective_that_is_not_judged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has a map of warmth, and judges\.pools has no such"):
        score_maps_for(asking(saved(tmp_path, name="warmth")), FOUR, [None])


def test_every_language_of_the_data_must_have_been_calibrated(tmp_path: Path) -> None:
    rubric = replace(
        FOUR["expression"].rubric, variants={"pt": Document(FOUR["expression"].rubric.front, "Em português.")}
    )
    variants = FOUR | {"expression": replace(FOUR["expression"], rubric=rubric)}  # type: ignore[type-var]
    path = saved(tmp_path)
    assert score_maps_for(asking(path), variants, [None, "de"])
    with pytest.raises(ConfigError, match="made with the rubric"):
        score_maps_for(asking(path), variants, [None, "pt-BR"])


def test_rewards_are_of_mapped_scores_and_judgments_keep_their_own() -> None:
    scores = {"resonation": 3.0, "expression": 3.5, "reception": 3.0, "bystander": 100.0}
    judgments = {name: Judgment(name, Status.OK, score=score) for name, score in scores.items()}
    config = RewardConfig(combine="mean")
    plain, _ = reward_of(judgments, FOUR, 0, config)
    mapped, _ = reward_of(judgments, FOUR, 0, config, {"expression": MAP})
    assert plain is not None
    assert mapped is not None
    assert plain.empathy == pytest.approx(9.5 / 15)
    assert mapped.empathy == pytest.approx(9.0 / 15)
    assert judgments["expression"].score == 3.5


def test_a_run_is_planned_with_its_map_or_refused(tmp_path: Path) -> None:
    config = Config(rewards=RewardConfig(score_map=saved(tmp_path)))
    assert dict(plan_run(config).score_maps) == {"expression": MAP}
    pools = {
        name: replace(pool, scoring=ScoringConfig(mode="expected"))
        for name, pool in config.judges.pools.items()
    }
    other = replace(config, judges=replace(config.judges, pools=pools))
    with pytest.raises(ConfigError, match="scoring mode reasoned of expression, found expected"):
        plan_run(other)
