"""Write EPITOME as rows of `perm-ray judge calibrate`: `python pipelines/epitome.py FOLDER OUT.jsonl`.

Reddit posts and replies, three mechanisms, each at level 0 (no), 1 (weak) or 2 (strong) (A. Sharma et al.,
arXiv 2009.08441). The published files hold some replies twice, not always at the same level: the label is the
mean. Then

    perm-ray judge calibrate --data OUT.jsonl --map emotional_reactions=expression \
        --map interpretations=expression --map explorations=reception
"""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

MECHANISMS = ("emotional_reactions", "interpretations", "explorations")


def rows(folder: Path) -> list[dict]:
    """Return one row for each reply, with the mean level of each mechanism."""
    texts: dict[str, tuple[str, str]] = {}
    levels: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name in MECHANISMS:
        for file in folder.glob(f"{name.replace('_', '-')}*.csv"):
            with file.open(encoding="utf-8-sig", newline="") as stream:
                for each in csv.DictReader(stream):
                    reply = f"{each['sp_id']}:{each['rp_id']}"
                    texts[reply] = each["seeker_post"], each["response_post"]
                    levels[reply][name].append(float(each["level"]))
    return [
        {
            "id": reply,
            "persona": "A person who writes in an online peer-support community.",
            "scenario": "They have written a post and somebody has replied to it.",
            "query": query,
            "response": response,
            "labels": {name: {"annotators": fmean(given)} for name, given in levels[reply].items()},
            "scale": {name: [0, 2] for name in MECHANISMS},
        }
        for reply, (query, response) in texts.items()
    ]


if __name__ == "__main__":
    if len(sys.argv) != 3 or not rows(Path(sys.argv[1])):
        raise SystemExit(f"{__doc__}\nFOLDER must hold files such as emotional-reactions-reddit.csv.")
    lines = [json.dumps(row, ensure_ascii=False) for row in rows(Path(sys.argv[1]))]
    Path(sys.argv[2]).write_text("\n".join(lines) + "\n", encoding="utf-8")
