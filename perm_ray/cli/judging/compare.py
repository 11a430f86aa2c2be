"""`perm-ray judge compare A.jsonl B.jsonl`: do two judges, or two rubrics, agree with each other?

Reads two files of `perm-ray judge score` over the same items; asks no judge.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from rich.console import Console

from perm_ray.cli.judging.tables import confusion_table, figure_table, print_item
from perm_ray.errors import DataError
from perm_ray.evaluation.calibration.agreement import Bootstrap
from perm_ray.evaluation.calibration.comparison import ComparisonReport, compare_scored
from perm_ray.evaluation.scored import read_scored
from perm_ray.files import write_json_atomic


def run(options: argparse.Namespace) -> int:
    """Compare the two files and print the figures."""
    if options.show < 0:
        raise DataError(f"--show must be 0 or more, found {options.show}.")
    first, second = read_scored(options.first), read_scored(options.second)
    report = compare_scored(first, second, Bootstrap(seed=options.seed), options.show)
    if options.json is not None:
        write_json_atomic(options.json, asdict(report))
    show(report, (options.first.name, options.second.name), Console())
    return 0


def show(report: ComparisonReport, names: tuple[str, str], console: Console) -> None:
    """Print the figures, each perspective's confusion matrix and the items to read."""
    rows = {name: pair.figures for name, pair in report.perspectives.items()}
    console.print(figure_table(f"{names[0]} and {names[1]}", rows | {"reward": report.rewards}))
    missing = [
        f"{count} items are in {name} alone" for count, name in zip(report.only_in, names, strict=True)
    ]
    console.print(f"{report.num_items} items are in both; {'; '.join(missing)}.", markup=False)
    for name, pair in report.perspectives.items():
        for side, setup in zip(names, report.setups, strict=True):
            console.print(f"{name} in {side}: {setup.judges.get(name)}", markup=False, soft_wrap=True)
        if pair.mean_difference is not None:
            text = f"{name}: {names[1]} gives {pair.mean_difference:+.3f} on average over {pair.n} items"
            console.print(text, markup=False, soft_wrap=True)
            console.print(confusion_table(pair.confusion, names[0], names[1]))
    for contrast in report.contrasts:
        x, y = contrast.scores
        print_item(
            console, f"{contrast.item.item_id}, {contrast.perspective}: {x:.2f} and {y:.2f}", contrast.item
        )
        for side, reason in zip(names, contrast.reasons, strict=True):
            if reason:
                console.print(f"  {side}: {reason}", markup=False, highlight=False)
