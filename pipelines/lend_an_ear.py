"""Write Lend an Ear as rows of `judge calibrate`: `python pipelines/lend_an_ear.py REPOSITORY OUT.jsonl`.

Conversations about troubles at work, six dimensions from 1 to 5, rated by three experts, a crowd and three
models (A. Kumar et al., arXiv 2506.10150). A judge of ours reads one query and one reply: the seeker's first
turn is the query, the supporter's turns are the reply, and what the seeker said in between is part of the
scenario. Then

    perm-ray judge calibrate --data OUT.jsonl --map validating_emotions=expression \
        --map demonstrating_understanding=expression --map encouraging_elaboration=reception \
        --map advice_giving=-reception --map self_oriented=-reception --map dismissing_emotions=-reception
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

DIMENSIONS = (
    *("validating_emotions", "demonstrating_understanding", "encouraging_elaboration"),
    *("advice_giving", "self_oriented", "dismissing_emotions"),
)
MODELS = ("gpt", "claude", "gemini")


def rows(repository: Path) -> list[dict]:
    """Return one row for each conversation, with the ratings of people and of models."""
    (conversations,) = repository.rglob("*lend_an_ear_conversations.csv")
    found = {each["conversation_id"]: _row(each) for each in _read(conversations)}
    for file in sorted(repository.rglob("*_ratings.csv")):
        rater = file.name.removesuffix("_ratings.csv")
        for each in _read(file):
            labels = found[each["conversation_id"]]["model_labels" if rater in MODELS else "labels"]
            for name in DIMENSIONS:
                if each[name].strip():
                    labels[name][rater] = float(each[name])
    return list(found.values())


def _row(conversation: dict[str, str]) -> dict:
    turns: list[list[str]] = []
    for line in conversation["full_conversation"].splitlines():
        speaker, colon, said = line.partition(":")
        if colon and speaker.strip() in ("Seeker", "Supporter"):
            turns.append([speaker.strip(), said.strip()])
        elif turns and line.strip():
            turns[-1][1] += f"\n{line.strip()}"
    asked, replies = ([said for who, said in turns if who == each] for each in ("Seeker", "Supporter"))
    later = "".join(f"\n{number}. {said}" for number, said in enumerate(asked[1:], start=1))
    many = [f"{number}. {said}" for number, said in enumerate(replies, start=1)]
    return {
        "id": conversation["conversation_id"],
        "persona": "A person who talks about a trouble at work.",
        "scenario": f"A conversation of several turns. After each reply the seeker went on:{later}"
        if later
        else "A conversation that has just begun.",
        "query": asked[0],
        "response": replies[0] if len(replies) == 1 else "\n".join(many),
        "labels": {name: {} for name in DIMENSIONS},
        "model_labels": {name: {} for name in DIMENSIONS},
        "scale": {name: [1, 5] for name in DIMENSIONS},
    }


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.DictReader(stream))


if __name__ == "__main__":
    if len(sys.argv) != 3 or not any(Path(sys.argv[1]).rglob("*lend_an_ear_conversations.csv")):
        raise SystemExit(f"{__doc__}\nREPOSITORY must hold *lend_an_ear_conversations.csv and *_ratings.csv.")
    lines = [json.dumps(row, ensure_ascii=False) for row in rows(Path(sys.argv[1]))]
    Path(sys.argv[2]).write_text("\n".join(lines) + "\n", encoding="utf-8")
