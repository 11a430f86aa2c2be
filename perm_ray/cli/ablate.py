"""`perm-ray ablate FILE`: variants of a run times seeds, and one table of what they came to.

Every policy is graded by the judges of the base configuration, on the same scenarios with the same random
numbers, whatever its own variant was rewarded by.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from perm_ray.cli.evaluate import report, with_progress
from perm_ray.cluster.session import authenticate
from perm_ray.errors import ConfigError, RunError
from perm_ray.evaluation.model_comparison import Measured, compare_models
from perm_ray.runs.ablation import Ablation, check_cells, grid, policy_of, read_ablation, run_cells
from perm_ray.runs.candidates import make_folder, names_and_overrides
from perm_ray.runs.evaluate import evaluate, plan_evaluation
from perm_ray.runs.signals import StopSignals


def run(options: argparse.Namespace) -> int:
    """Train every cell, grade every policy, print the table; 1 when a cell failed."""
    ablation = _ablation(options)
    if options.jobs < 1:
        raise ConfigError(f"--jobs must be 1 or more, found {options.jobs}.")
    if options.address is not None:
        authenticate(options.address)
        options.out = options.out.absolute()  # the cluster's nodes have another working directory
    at_once = 1 if options.address is None else options.jobs
    check_cells(ablation, options.out)
    make_folder(options.out)
    with StopSignals() as stop:
        failed = run_cells(
            ablation, options.out, stop, lambda text: print(text, flush=True), options.address, at_once
        )
    done = [cell for cell in ablation.cells if cell not in failed]
    if not done:
        raise RunError(f"Every cell failed: see {options.out / 'logs'}.")
    config = ablation.config()
    policies = {cell: str(policy_of(cell, options.out)) for cell in done}
    count = config.evaluation.num_scenarios or None
    plan = plan_evaluation(config, [config.policy.model, *policies.values()], count)
    answers = with_progress(evaluate, plan, options.out)
    joined: dict[str, list[Measured]] = {"before": list(answers[config.policy.model])}
    by_variant: defaultdict[str, list[Sequence[Measured]]] = defaultdict(list)
    for cell, policy in policies.items():
        by_variant[cell.variant].append(answers[policy])
    joined |= {name: [one for own in found for one in own] for name, found in by_variant.items()}
    spread = "; ".join(f"{name} {_spread(found)}" for name, found in by_variant.items())
    remarks = [
        "Each variant's policies, the mean over its seeds; the first column is the policy before training. "
        "Graded by the judges of the base configuration.",
        f"Reward of each seed: {spread}.",
        *(f"{cell.name} failed: {why}" for cell, why in failed.items()),
    ]
    cells = {cell.name: {policy: answers[policy]} for cell, policy in policies.items()}
    means = {name: compare_models(own, config.run.seed)[0].means for name, own in cells.items()}
    report(options, config, joined, "Ablations", remarks, config.data.heldout, means)
    return 1 if failed else 0


def _ablation(options: argparse.Namespace) -> Ablation:
    files, common = names_and_overrides(options.arguments)
    seeds = _seeds(options.seeds)
    if options.grid and not files:
        return grid(options.base, options.grid, seeds or [42], common)
    if options.grid or len(files) != 1:
        raise ConfigError(
            "Variants must be given by one file, or by --grid a.b=c,d, found "
            f"{', '.join(files) or 'no file'}{' and --grid' if options.grid else ''}."
        )
    found = read_ablation(Path(files[0]), common)
    if seeds is None:
        return found
    variants = dict.fromkeys((cell.variant, cell.overrides) for cell in found.cells)
    first = {(cell.variant, cell.overrides): cell for cell in reversed(found.cells)}
    cells = tuple(replace(first[variant], seed=seed) for variant in variants for seed in seeds)
    return replace(found, cells=cells)


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise ConfigError(f"--seeds must be whole numbers such as 1,2,3, found {text!r}.")
    return [int(word) for word in words]


def _spread(found: Sequence[Sequence[Measured]]) -> str:
    """Return the mean reward of each seed's policy."""
    means = []
    for own in found:
        rewards = [one.measures["reward"] for one in own if "reward" in one.measures]
        means.append(f"{sum(rewards) / len(rewards):.3f}" if rewards else "none")
    return ", ".join(means)
