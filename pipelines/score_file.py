"""Score every reply of a JSONL file with PERM's reward: `python pipelines/score_file.py REPLIES [CONFIG]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import perm_ray

FIELDS = ("persona", "scenario", "query", "response", "analysis", "language")


def main(file: str, config: str = "local") -> None:
    """Print each row's reward and scores; a row has persona, scenario, query, response, maybe analysis."""
    with perm_ray.Judges(config) as judges:
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            verdict = judges.score(**{name: row[name] for name in FIELDS if name in row})
            scores = {name: judgment.score for name, judgment in verdict.judgments.items()}
            reward = verdict.reward.value if verdict.reward else verdict.masked_because
            print(json.dumps({"reward": reward, **scores}))


if __name__ == "__main__":
    main(*sys.argv[1:])
