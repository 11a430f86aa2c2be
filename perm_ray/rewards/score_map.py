"""A monotone map from a judge's scores to what people would have given, on the judge's own scale.

`perm-ray judge calibrate --fit-map FILE` makes the file (`evaluation/calibration/score_fit.py`),
`rewards.score_map: FILE` uses it: the reward is then made of mapped scores, and judgments keep the raw
ones. A map belongs to the judge it was made with: another model, rubric or scoring mode is refused. Pure.

The file is one JSON object::

    {"kind": "perm_ray score map", "perspectives": {"expression": {
        "judge": "builtin:...", "mode": "expected", "rubric_digests": ["0123abcd..."], "scale": [1, 5],
        "n": 200, "scores": [1.2, 2.8, 4.1], "mapped": [1.0, 2.1, 4.4], "error": {...}}}}
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from perm_ray.config.schema import Config
from perm_ray.errors import ConfigError

if TYPE_CHECKING:
    from perm_ray.judges.perspective import Perspective

KIND = "perm_ray score map"


@dataclass(frozen=True, slots=True)
class ScoreMap:
    """One perspective's map: `mapped[i]` is worth `scores[i]`, with straight lines in between.

    `scores` increase strictly and `mapped` never falls; both are on `scale` (lowest, highest). `n` is how
    many items it was fitted on; `error` is what fitting was worth, by cross-validation.
    """

    judge: str
    mode: str
    rubric_digests: tuple[str, ...]
    scale: tuple[int, int]
    n: int
    scores: tuple[float, ...]
    mapped: tuple[float, ...]
    error: Mapping[str, float] = field(default_factory=dict)

    def apply(self, score: float) -> float:
        """Return the score that people would have given; beyond the ends of the map, its end."""
        i = bisect_right(self.scores, score)
        if i == 0:
            value = self.mapped[0]
        elif i == len(self.scores):
            value = self.mapped[-1]
        else:
            left, right = self.scores[i - 1], self.scores[i]
            share = (score - left) / (right - left)
            value = self.mapped[i - 1] + share * (self.mapped[i] - self.mapped[i - 1])
        return min(max(value, self.scale[0]), self.scale[1])


def load_score_maps(path: str | Path) -> dict[str, ScoreMap]:
    """Return the maps of a file, by perspective. Raises `ConfigError` when it is no such file, or not
    monotone."""
    file = Path(path).expanduser()
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"rewards.score_map cannot be read: {file} ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"rewards.score_map must be JSON, found {file} ({error}).") from error
    entries = document.get("perspectives") if isinstance(document, dict) else None
    if not isinstance(entries, dict) or not entries or document.get("kind") != KIND:
        raise ConfigError(
            f"rewards.score_map must be a file that `perm-ray judge calibrate --fit-map` wrote, found {file}."
        )
    return {str(name): _score_map(file, str(name), entry) for name, entry in entries.items()}


def score_maps_for(
    config: Config,
    perspectives: Mapping[str, Perspective],
    languages: Iterable[str | None],
) -> dict[str, ScoreMap]:
    """Return the maps of the file at `rewards.score_map` (none without one), for use with these judges.

    `languages` are those of the data: a rubric may have a variant for each. Raises `ConfigError` for a
    map that was made with another judge model, scoring mode, scale or rubric.
    """
    path = config.rewards.score_map
    maps = load_score_maps(path) if path is not None else {}
    tags = set(languages)
    for name, score_map in maps.items():
        if name not in perspectives:
            raise ConfigError(
                f"rewards.score_map has a map of {name}, and judges.pools has no such perspective: calibrate "
                "the judges you use."
            )
        pool, perspective = config.judges.pools[name], perspectives[name]
        _require_equal(name, "judge model", score_map.judge, config.model_of(pool).model)
        _require_equal(name, "scoring mode", score_map.mode, pool.scoring.mode)
        scale = (perspective.scale.low, perspective.scale.high)
        _require_equal(name, "scale", score_map.scale, scale)
        for digest in sorted({perspective.rubric.digest(language) for language in tags}):
            if digest not in score_map.rubric_digests:
                _require_equal(name, "rubric", ", ".join(score_map.rubric_digests), digest)
    return maps


def _require_equal(name: str, what: str, made_with: object, found: object) -> None:
    if made_with != found:
        raise ConfigError(
            f"rewards.score_map was made with the {what} {made_with} of {name}, found {found}: calibrate "
            "again with what you use, or leave the map out."
        )


def score_maps_document(maps: Mapping[str, ScoreMap]) -> dict[str, object]:
    """Return the maps as the file holds them."""
    return {"kind": KIND, "perspectives": {name: asdict(score_map) for name, score_map in maps.items()}}


def _score_map(file: Path, name: str, entry: object) -> ScoreMap:
    try:
        found = TypeAdapter(ScoreMap).validate_json(json.dumps(entry), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, wrong = ".".join(map(str, first["loc"][:1])), first["msg"].removeprefix("Input should be ")
        raise _unusable(file, f"{name}.{key}", wrong, first["input"]) from None
    low, high = found.scale
    rules = (
        ("scale", "two whole numbers, the lower first", low < high),
        ("n", "a whole number from 1", found.n >= 1),
        ("rubric_digests", "a list of texts", bool(found.rubric_digests)),
        ("scores", "numbers on the scale", all(low <= score <= high for score in found.scores)),
        ("scores", "strictly increasing", all(a < b for a, b in pairwise(found.scores))),
        ("mapped", "numbers on the scale", all(low <= score <= high for score in found.mapped)),
        ("mapped", "one number for each of scores", len(found.mapped) == len(found.scores) > 0),
        ("mapped", "monotone (no better score is worth less)", sorted(found.mapped) == [*found.mapped]),
    )
    for key, expected, holds in rules:
        if not holds:
            raise _unusable(file, f"{name}.{key}", expected, getattr(found, key))
    return found


def _unusable(file: Path, where: str, expected: str, found: object) -> ConfigError:
    return ConfigError(
        f"In the score map {file}, {where} must be {expected}, found {str(found)[:80]}: calibrate again."
    )
