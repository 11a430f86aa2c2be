"""Readers of two public data sets of rated replies, as their authors publish them.

EPITOME (A. Sharma et al., A Computational Approach to Understanding Empathy Expressed in Text-Based
Mental Health Support, arXiv 2009.08441): Reddit posts and replies, three mechanisms, each at level 0
(no), 1 (weak) or 2 (strong), one label a reply.

Lend an Ear (A. Kumar et al., When Large Language Models are Reliable for Judging Empathic
Communication, arXiv 2506.10150): conversations about troubles at work, six dimensions from 1 to 5, rated
by three experts, a crowd (the mean of several people) and three models.

Neither has an analysis, so nothing in them is held against resonation. Which perspective asks what a
dimension asks is our reading of the rubrics; `--map` replaces it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from perm_ray.data.items import make_scenario, note_repeated
from perm_ray.data.tables import Problems, Row, csv_rows
from perm_ray.errors import DataError
from perm_ray.evaluation.calibration.labelled import (
    Dimension,
    LabelledItem,
    LabelledSet,
    map_dimensions,
    oriented,
)
from perm_ray.types import JudgeItem, Scale, Scenario, Sections

# A mechanism that conveys understanding or warmth is expression; one that invites the seeker to go on is
# reception.
EPITOME_MAP = {
    "emotional_reactions": "expression",
    "interpretations": "expression",
    "explorations": "reception",
}
EPITOME_SCALE = Scale(0, 2)

# Being dismissed, talked over and told what to do is what reception calls intrusive: turned over.
LEND_AN_EAR_MAP = {
    "validating_emotions": "expression",
    "demonstrating_understanding": "expression",
    "encouraging_elaboration": "reception",
    "advice_giving": "-reception",
    "self_oriented": "-reception",
    "dismissing_emotions": "-reception",
}
LEND_AN_EAR_SCALE = Scale(1, 5)
LEND_AN_EAR_MODELS = ("gpt", "claude", "gemini")

_Ratings = dict[str, dict[str, dict[str, list[float]]]]  # item, dimension, rater: values


# ---- EPITOME ---------------------------------------------------------------------------------------


def read_epitome(path: Path, dimension_map: Mapping[str, str]) -> LabelledSet:
    """A folder with `emotional-reactions*.csv`, `interpretations*.csv` and `explorations*.csv`, or one of
    them; columns sp_id, rp_id, seeker_post, response_post, level.

    The published files hold some replies twice, not always at the same level: the label is the mean.
    """
    files = _epitome_files(path)
    dimensions = map_dimensions(dict.fromkeys(files, EPITOME_SCALE), EPITOME_MAP, dimension_map)
    problems = Problems()
    items: dict[str, JudgeItem] = {}
    ratings: _Ratings = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    columns = ("sp_id", "rp_id", "seeker_post", "response_post", "level")
    for dimension in dimensions:
        for row in csv_rows(files[dimension.name], columns, problems):
            item_id = f"{row.text('sp_id')}:{row.text('rp_id')}"
            scenario = make_scenario(
                "A person who writes in an online peer-support community.",
                "They have written a post and somebody has replied to it.",
                row.text("seeker_post"),
            )
            items.setdefault(item_id, JudgeItem(item_id, scenario, Sections(None, row.text("response_post"))))
            _take(ratings, row, item_id, dimension, "level", "annotators")
    problems.settle(path)
    return _labelled(path, items, dimensions, ratings)


def _epitome_files(path: Path) -> dict[str, Path]:
    """The file of each mechanism that is there."""
    if not path.exists():
        raise DataError(f"There is no {path}: give the folder with EPITOME's CSV files, or one of them.")
    candidates = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    found = {
        name: file
        for name in EPITOME_MAP
        for file in candidates
        if file.name.lower().replace("-", "_").startswith(name)
    }
    if not found:
        names = ", ".join(f"{name.replace('_', '-')}*.csv" for name in EPITOME_MAP)
        raise DataError(f"{path} must hold (or be) one or more of {names}, found none of them.")
    return found


# ---- Lend an Ear -----------------------------------------------------------------------------------


def read_lend_an_ear(path: Path, dimension_map: Mapping[str, str]) -> LabelledSet:
    """The folder of the published repository: `*_ratings.csv` in it or in `annotations/lend_an_ear`, and
    a `*conversations.csv` anywhere below it (columns conversation_id, full_conversation).

    Raters judged the supporter over the whole conversation. A judge of ours reads one query and one
    response: the seeker's first turn is the query, the supporter's turns are the response, and what the
    seeker said in between is part of the scenario.
    """
    files, conversations = _lend_an_ear_files(path)
    scales = dict.fromkeys(LEND_AN_EAR_MAP, LEND_AN_EAR_SCALE)
    dimensions = map_dimensions(scales, LEND_AN_EAR_MAP, dimension_map)
    problems = Problems()
    items, lines = dict[str, JudgeItem](), dict[str, int]()
    for row in csv_rows(conversations, ("conversation_id", "full_conversation"), problems):
        item_id = row.text("conversation_id")
        note_repeated(row, item_id, lines)
        scenario, response = _conversation(row)
        items[item_id] = JudgeItem(item_id, scenario, Sections(None, response))
    people, models = _empty(), _empty()
    for rater, file in files.items():
        ratings = models if rater in LEND_AN_EAR_MODELS else people
        _take_ratings(file, rater, dimensions, items, ratings, problems)
    problems.settle(path)
    return _labelled(path, items, dimensions, people, models)


def _take_ratings(
    file: Path,
    rater: str,
    dimensions: tuple[Dimension, ...],
    items: Mapping[str, JudgeItem],
    ratings: _Ratings,
    problems: Problems,
) -> None:
    lines: dict[str, int] = {}
    for row in csv_rows(file, ("conversation_id", *(each.name for each in dimensions)), problems):
        item_id = row.text("conversation_id")
        note_repeated(row, item_id, lines)
        if item_id not in items:
            row.complain("conversation_id", "one of the conversations", item_id)
            continue
        for dimension in dimensions:
            _take(ratings, row, item_id, dimension, dimension.name, rater)


def _lend_an_ear_files(path: Path) -> tuple[dict[str, Path], Path]:
    """The file of each rater, and the conversations."""
    folders = [path, path / "annotations" / "lend_an_ear", path / "lend_an_ear"]
    rated = next(
        (sorted(folder.glob("*_ratings.csv")) for folder in folders if any(folder.glob("*_ratings.csv"))), []
    )
    raters = {file.name.removesuffix("_ratings.csv"): file for file in rated}
    if not set(raters) - set(LEND_AN_EAR_MODELS):
        raise DataError(
            f"{path} must hold the ratings of people (expert1_ratings.csv, crowd_ratings.csv and the like), "
            "in itself or in annotations/lend_an_ear, found none."
        )
    found = sorted(path.rglob("*conversations.csv"), key=lambda file: ("lend_an_ear" not in file.name, file))
    if not found:
        raise DataError(f"{path} must hold the conversations (a file *conversations.csv), found none.")
    return raters, found[0]


def _conversation(row: Row) -> tuple[Scenario, str]:
    """A text with lines that begin "Seeker:" or "Supporter:", as one scenario and one response."""
    turns: list[tuple[str, str]] = []
    for line in row.text("full_conversation").splitlines():
        speaker, colon, said = line.partition(":")
        if colon and speaker.strip() in ("Seeker", "Supporter"):
            turns.append((speaker.strip(), said.strip()))
        elif turns and line.strip():
            turns[-1] = (turns[-1][0], f"{turns[-1][1]}\n{line.strip()}")
    asked = [said for speaker, said in turns if speaker == "Seeker" and said]
    replies = [said for speaker, said in turns if speaker == "Supporter" and said]
    if not asked or not replies or turns[0][0] != "Seeker":
        row.complain(
            "full_conversation", "turns of Seeker: and Supporter:, the seeker first", "something else"
        )
        return make_scenario("?", "?", "?"), ""
    later = "".join(f"\n{number}. {said}" for number, said in enumerate(asked[1:], start=1))
    scenario = make_scenario(
        "A person who talks about a trouble at work.",
        "A conversation of several turns. After each reply the seeker went on:" + later
        if later
        else "A conversation that has just begun.",
        asked[0],
    )
    if len(replies) == 1:
        return scenario, replies[0]
    return scenario, "\n".join(f"{number}. {said}" for number, said in enumerate(replies, start=1))


# ---- both ------------------------------------------------------------------------------------------


def _empty() -> _Ratings:
    return defaultdict(lambda: defaultdict(lambda: defaultdict(list)))


def _take(ratings: _Ratings, row: Row, item_id: str, dimension: Dimension, column: str, rater: str) -> None:
    value = row.rating(column, row.data[column], dimension.scale)
    if value is not None:
        ratings[item_id][dimension.name][rater].append(oriented(value, dimension))


def _labelled(
    path: Path,
    items: Mapping[str, JudgeItem],
    dimensions: tuple[Dimension, ...],
    ratings: _Ratings,
    model_ratings: _Ratings | None = None,
) -> LabelledSet:
    def of(table: _Ratings, item_id: str) -> dict[str, dict[str, float]]:
        return {
            dimension: {rater: fmean(values) for rater, values in by_rater.items()}
            for dimension, by_rater in table.get(item_id, {}).items()
        }

    labelled = tuple(
        LabelledItem(item, of(ratings, item_id), of(model_ratings or {}, item_id))
        for item_id, item in items.items()
    )
    if not labelled:
        raise DataError(f"{path} has no rated replies: its files have headers and nothing else.")
    return LabelledSet(path.name, labelled, dimensions)
