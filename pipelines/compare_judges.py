"""Ask two judge models about the same reply: `python pipelines/compare_judges.py MODEL_A MODEL_B`.

A model is a built-in name, a folder or a hub id. `perm-ray judge compare` does it for whole files.
"""

from __future__ import annotations

import sys

import perm_ray

REPLY = {
    "persona": "Ana, 41, a nurse",
    "scenario": "She was passed over for head nurse; her friend Rui got the post.",
    "query": "I should be happy for Rui.",
    "response": "You can be glad for him and sad for yourself. Both fit on one day.",
}


def main(*models: str) -> None:
    """Print what each model gives, by perspective."""
    for model in models:
        with perm_ray.Judges(perm_ray.load_config("local", [f"models.judge.model={model}"])) as judges:
            verdict = judges.score(**REPLY)
        print(model, {name: judgment.score for name, judgment in verdict.judgments.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
