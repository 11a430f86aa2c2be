"""Train a policy and print what was gained: `python pipelines/train.py [CONFIG]`."""

from __future__ import annotations

import sys

import perm_ray


def main(config: str = "local") -> None:
    """Train with a shipped configuration or a YAML file, and print the held-out reward and five answers."""
    run = perm_ray.train(config)
    print(run.summary["evaluation"]["difference"])
    for pair in run.summary["answers"]:
        print(f"\n{pair['query']}\n- before: {pair['before']}\n- after: {pair['after']}")
    print(f"\nThe policy, a folder that transformers and vLLM load: {run.policy}")


if __name__ == "__main__":
    main(*sys.argv[1:])
