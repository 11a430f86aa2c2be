"""Hold the graded answers to their rules, and show their statistics: `python -m tests.support.graded_set`.

Grades must come apart: none may follow from the length of the text it grades, nor from another grade; and
nothing may be copied from one answer to another.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer

from perm_ray.data.graded import GRADED, examples_file

GRADES = {
    "resonation": "analysis",
    "expression": "response",
    "reception": "response",
    "bystander": "response",
}
MAX_LENGTH_RHO, MAX_PAIR_RHO = 0.15, 0.8
MIN_SCENARIOS, MIN_HELDOUT, MIN_ANSWERS = 160, 40, 5
NEAR_DUPLICATE = 0.8  # cosine of TF-IDF over groups of characters
_SENTENCE = re.compile(r"[^.!?。！？\n]{25,}[.!?。！？]")
# Kinds that copy, or are noise, on purpose.
COPIES = {"copied_query", "gibberish", "tampered"}

Row = Mapping[str, Any]


def graded_rows() -> list[Row]:
    """Return the rows of `builtin:graded`."""
    lines = examples_file(GRADED).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def grade(row: Row, name: str) -> float:
    return row["labels"][name]["author"]


def rho(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation."""
    return float(np.asarray(spearmanr(first, second))[0])


def length_rhos(rows: Sequence[Row]) -> dict[str, float]:
    """Return each grade's correlation with the length, in characters, of the text it grades."""
    return {
        name: rho([grade(row, name) for row in rows], [len(row[text]) for row in rows])
        for name, text in GRADES.items()
    }


def pair_rhos(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Return the correlation of each two grades."""
    return {
        (a, b): rho([grade(row, a) for row in rows], [grade(row, b) for row in rows])
        for a, b in combinations(GRADES, 2)
    }


def shared_sentences(rows: Sequence[Row]) -> Iterator[tuple[str, list[str]]]:
    """Yield sentences that stand in more than one answer, with the answers' ids."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        for text in (row["analysis"], row["response"]):
            for sentence in {match.strip().lower() for match in _SENTENCE.findall(text)}:
                found[sentence].append(row["id"])
    yield from ((sentence, ids) for sentence, ids in found.items() if len(ids) > 1)


def near_duplicates(rows: Sequence[Row]) -> Iterator[tuple[str, str, float]]:
    """Yield pairs of responses that are nearly the same, with their similarity."""
    rows = [row for row in rows if row["kind"] not in COPIES]
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(4, 5)).fit_transform(
        row["response"] for row in rows
    )
    similar = (vectors @ vectors.T).tocoo()
    for i, j, value in zip(similar.row, similar.col, similar.data, strict=True):
        if i < j and value > NEAR_DUPLICATE:
            yield rows[i]["id"], rows[j]["id"], float(value)


def main() -> None:
    """Print the statistics."""
    rows = graded_rows()
    scenarios = {row["id"].partition("/")[0]: row for row in rows}
    print(f"{len(scenarios)} scenarios, {len(rows)} answers")
    for name in ("split", "language"):
        print(f"{name}:", dict(Counter(row[name] for row in scenarios.values())))
    print("kinds:", dict(Counter(row["kind"] for row in rows).most_common()))
    for name in ("resonation", "expression", "reception"):
        print(f"{name}:", dict(sorted(Counter(grade(row, name) for row in rows).items())))
    for name, value in length_rhos(rows).items():
        print(f"{name} against length: {value:+.3f}")
    for (a, b), value in pair_rhos(rows).items():
        print(f"{a} against {b}: {value:+.3f}")
    for a, b, value in near_duplicates(rows):
        print(f"near-duplicates {a} {b}: {value:.2f}")


if __name__ == "__main__":
    main()
