"""`perm-ray judge train`: teach a judge from ratings, and compare it before and after on scenarios held out.

What is trained is the very query that scoring mode `expected` makes; the result is a model folder that
`models.<name>.model=` takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from perm_ray.cli.finetune import config_of, describe, parser, train_on
from perm_ray.cluster.session import authenticate
from perm_ray.config.schema import Config
from perm_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console

    from perm_ray.evaluation.calibration.figures import Judgments
    from perm_ray.evaluation.calibration.labelled import LabelledItem, LabelledSet
    from perm_ray.judges.perspective import Perspective
    from perm_ray.models.chat import ChatRenderer
    from perm_ray.runs.examples import Unit
    from perm_ray.runs.finetune import Examples

_DATA = "builtin:graded"
_FEW = 50  # rows: a judge that learned from fewer is made, with a warning


def run(arguments: Sequence[str]) -> int:
    """Return the exit code; raises `PermRayError`s for `main.py` to print."""
    options = _parser().parse_intermixed_args(arguments)
    config = config_of(options, _DATA)
    authenticate(config.ray.address)
    name = trained_model(config, options.model)
    examples = examples_of(config, name)
    if options.dry_run:
        print(describe(config, examples), end="")
        return 0
    directory = train_on(config, examples, options.resume)
    if examples.task == "supervised" and examples.heldout:
        compare(config, name, directory)
    return 0


def _parser() -> argparse.ArgumentParser:
    options = parser(
        "judge train",
        "Teach a judge from ratings (rows of `perm-ray judge calibrate`), asked as in mode `expected`.",
        _DATA,
    )
    options.add_argument(
        "--model", default=None, help="entry of `models` to train (default: the only engine)", metavar="NAME"
    )
    return options


def trained_model(config: Config, name: str | None) -> str:
    """Return the engine of `models` that is trained. Raises `ConfigError`."""
    engines = list(config.judge_engines)
    if name is None and len(engines) == 1:
        return engines[0]
    if name not in engines:
        raise ConfigError(
            f"--model must name the engine of `models` to train ({', '.join(engines) or 'none'}), "
            f"found {name or 'nothing'}: endpoints cannot be trained."
        )
    for pool_name, pool in config.judges.pools.items():
        if pool.model == name and pool.scoring.mode != "expected":
            raise ConfigError(
                f"judges.pools.{pool_name}.scoring.mode must be expected, which is what is trained, found "
                f"{pool.scoring.mode}."
            )
    return name


def examples_of(config: Config, name: str) -> Examples:
    """Read, check and render what the model `name` learns from: ratings, or pairs of a better and a worse.

    Raises:
        UserError: Something in the configuration or the data cannot be used as it is.
    """
    from perm_ray.data.graded import examples_file
    from perm_ray.data.items import has_preferences
    from perm_ray.judges.startup import build_perspectives
    from perm_ray.models.chat import ChatRenderer
    from perm_ray.models.resolve import resolve_model
    from perm_ray.runs.finetune import Examples, check_finetune

    check_finetune(config)
    file = examples_file(config.finetune.data)
    every = build_perspectives(config.judges)
    perspectives = {key: p for key, p in every.items() if config.judges.pools[key].model == name}
    engine = config.judge_engines[name]
    model = resolve_model(engine.model, engine.adapter)
    renderer = ChatRenderer(model, engine.enable_thinking)
    rubrics = {f"rubric of {key}": p.rubric.digest_of_all for key, p in perspectives.items()}
    if has_preferences(file):
        epochs, heldout, digest = _preferences(config, file, perspectives, renderer)
        return Examples(model, epochs, heldout, {"preferences": digest, **rubrics}, "preference")
    epochs, heldout, digest = _ratings(config, file, every, perspectives, renderer)
    if not epochs[0]:
        raise DataError(f"{file} has no rating that a judge of models.{name} could learn from.")
    return Examples(model, epochs, heldout, {"ratings": digest, **rubrics})


def _ratings(
    config: Config,
    file: Path,
    every: Mapping[str, Perspective],
    perspectives: Mapping[str, Perspective],
    renderer: ChatRenderer,
) -> tuple[list[list[Unit]], list[Unit], str]:
    """Return the units of each epoch, those held out, and the digest of the data."""
    from perm_ray.data.items import read_examples
    from perm_ray.evaluation.calibration.labelled import check_perspectives
    from perm_ray.evaluation.calibration.labels import read_labels
    from perm_ray.files import text_digest
    from perm_ray.runs.examples import heldout_scenarios, learned_from
    from perm_ray.runs.rating_examples import rating_units

    settings, seed = config.finetune, config.run.seed
    labelled = read_labels(file, "jsonl")
    check_perspectives(labelled.dimensions, every)
    scenarios = [row.item.scenario for row in labelled.items]
    heldout = heldout_scenarios(scenarios, read_examples(file).splits, settings.heldout_share, seed)

    def units(chosen: Sequence[LabelledItem], pass_seed: str) -> list[Unit]:
        return rating_units(
            chosen,
            labelled.dimensions,
            config.judges,
            perspectives,
            renderer,
            pass_seed,
            settings.max_tokens,
            every_criterion=False,
        )

    def learned(row: LabelledItem) -> bool:
        return learned_from(row.item.scenario.scenario_id, heldout, settings)

    train = [row for row in labelled.items if learned(row)]
    measured = [row for row in labelled.items if row.item.scenario.scenario_id in heldout]
    epochs = [units(train, f"{seed}/{epoch}") for epoch in range(settings.epochs)]
    return epochs, units(measured, str(seed)), text_digest(repr(labelled))


def _preferences(
    config: Config, file: Path, perspectives: Mapping[str, Perspective], renderer: ChatRenderer
) -> tuple[list[list[Unit]], list[Unit], str]:
    """Return the same of pairs."""
    from perm_ray.data.items import read_preferences
    from perm_ray.files import text_digest
    from perm_ray.runs.examples import heldout_scenarios
    from perm_ray.runs.rating_examples import preference_units

    settings, seed = config.finetune, config.run.seed
    pairs, splits = read_preferences(file)
    scenarios = [pair.better.scenario for pair in pairs]
    heldout = heldout_scenarios(scenarios, splits, settings.heldout_share, seed)

    def units(held: bool, pass_seed: str) -> list[Unit]:
        chosen = [pair for pair in pairs if (pair.better.scenario.scenario_id in heldout) == held]
        return preference_units(chosen, config.judges, perspectives, renderer, pass_seed, settings.max_tokens)

    epochs = [units(held=False, pass_seed=f"{seed}/{epoch}") for epoch in range(settings.epochs)]
    return epochs, units(held=True, pass_seed=str(seed)), text_digest(repr(pairs))


# ---- the report ---------------------------------------------------------------------------------


def compare(config: Config, name: str, directory: Path) -> None:
    """Judge the held-out rows by the model as it was and as it is now; print and write how far each agrees.

    Writes `judge_report.json` into the run directory, and the figures into the model's card.
    """
    from rich.console import Console

    from perm_ray.data.graded import examples_file
    from perm_ray.data.items import read_examples
    from perm_ray.evaluation.calibration.agreement import Bootstrap
    from perm_ray.evaluation.calibration.figures import improvements
    from perm_ray.evaluation.calibration.labels import read_labels
    from perm_ray.files import write_json_atomic, write_text_atomic
    from perm_ray.judges.startup import build_perspectives
    from perm_ray.runs.examples import heldout_scenarios, learned_from

    file, seed = examples_file(config.finetune.data), config.run.seed
    labelled = read_labels(file, "jsonl")
    scenarios = [row.item.scenario for row in labelled.items]
    heldout = heldout_scenarios(scenarios, read_examples(file).splits, config.finetune.heldout_share, seed)
    learned = sum(learned_from(each.scenario_id, heldout, config.finetune) for each in scenarios)
    rows = tuple(row for row in labelled.items if row.item.scenario.scenario_id in heldout)
    labelled = replace(labelled, items=rows)
    trained = replace(config.models[name], model=str(directory / "model"), adapter=None)
    console = Console()
    judged = []
    for when, models in (("before", config.models), ("after", {**config.models, name: trained})):
        console.print(f"Judging {len(rows)} held-out replies by the model {when} training.")
        judged.append(_judged(replace(config, models=models), labelled, console))
    scales = {key: perspective.scale for key, perspective in build_perspectives(config.judges).items()}
    found = improvements(labelled, judged[0], judged[1], scales, Bootstrap(seed=seed))
    table = [f"{'':<14}{'':<10}{'before':<24}{'after':<24}change (95% interval over scenarios)"]
    for dimension, figures in found.items():
        for figure, (before, after, change) in figures.items():
            table.append(f"{dimension:<14}{figure:<10}{before!s:<24}{after!s:<24}{change}")
            if change.low is not None and change.high is not None and change.low <= 0 <= change.high:
                table[-1] += "  the interval spans zero: no change is shown"
    console.print("\n".join(table), markup=False, highlight=False, soft_wrap=True)
    write_json_atomic(directory / "judge_report.json", {"rows": len(rows), "figures": found})
    warning = f"It learned from {learned} rows only, fewer than {_FEW}: trust it little."
    few = "" if learned >= _FEW else f"\n{warning}\n"
    card = f"# A judge, trained from {config.finetune.data}\n{few}\n```text\n" + "\n".join(table) + "\n```\n"
    write_text_atomic(directory / "model" / "README.md", card)
    if few:
        console.print(few.strip(), markup=False)


def _judged(config: Config, labelled: LabelledSet, console: Console) -> Judgments:
    from rich.progress import track

    from perm_ray.cli.judging.judges_up import judges_up

    items = [row.item for row in labelled.items]
    with judges_up(config) as judges:
        done = track(judges.judge(items), "judging", total=len(items), console=console, transient=True)
        return {item.item_id: judgments for item, judgments in done}
