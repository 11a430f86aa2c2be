"""`perm-ray judge train`: teach a judge from ratings, and compare it before and after on scenarios held out.

What is trained is the very query that scoring mode `expected` makes; the result is a model folder that
`models.<name>.model=` takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from perm_ray.cli.finetune import config_of, train_on
from perm_ray.cli.judging.judged import judge_all
from perm_ray.config.schema import Config
from perm_ray.config.training import FinetuneConfig
from perm_ray.data.graded import examples_file
from perm_ray.data.items import has_preferences, read_examples, read_preferences
from perm_ray.errors import ConfigError, DataError
from perm_ray.evaluation.calibration.agreement import Bootstrap
from perm_ray.evaluation.calibration.comparison import improvements
from perm_ray.evaluation.calibration.labelled import LabelledSet, check_perspectives
from perm_ray.evaluation.calibration.labels import read_labels
from perm_ray.files import text_digest, write_json_atomic, write_text_atomic
from perm_ray.judges.perspective import Perspective
from perm_ray.judges.startup import build_perspectives
from perm_ray.models.chat import ChatRenderer
from perm_ray.models.resolve import resolve_model
from perm_ray.runs.examples import Unit, heldout_scenarios, learned_from
from perm_ray.runs.finetune import Examples, check_finetune
from perm_ray.runs.rating_examples import preference_units, rating_units
from perm_ray.trainer.batching import Task
from perm_ray.types import Scenario

_FEW = 50  # rows: a judge that learned from fewer is made, with a warning


@dataclass(frozen=True)
class Rated:
    """Replies that people have rated; `heldout` are the scenarios that only measure."""

    labelled: LabelledSet
    heldout: Collection[str]


Units = Callable[[bool, str], list[Unit]]  # of those held out or the others, drawn with a seed


def run(options: argparse.Namespace) -> int:
    """Train a judge and compare it with what it was, or say what would be run."""
    config = config_of(options, "builtin:graded")
    name = trained_model(config, options.model)
    check_finetune(config)
    file = examples_file(config.finetune.data)
    rated = None if has_preferences(file) else read_rated(config, file)
    examples = examples_of(config, name, file, rated)
    directory = train_on(options, config, examples)
    if directory is not None and rated is not None and examples.heldout:
        compare(config, name, rated, directory)
    return 0


def trained_model(config: Config, name: str | None) -> str:
    """Return the engine of `models` that is trained. Raises `ConfigError`."""
    engines = list(config.judge_engines)
    if name is None and len(engines) == 1:
        name = engines[0]
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


def read_rated(config: Config, file: Path) -> Rated:
    """Return the rated replies, and the ids of the scenarios that only measure. Raises `DataError`."""
    labelled, share = read_labels(file), config.finetune.heldout_share
    scenarios = [row.item.scenario for row in labelled.items]
    return Rated(labelled, heldout_scenarios(scenarios, read_examples(file).splits, share, config.run.seed))


def examples_of(config: Config, name: str, file: Path, rated: Rated | None) -> Examples:
    """Check and render what the model `name` learns from: ratings, or without them the pairs in `file`.

    Raises:
        UserError: Something in the configuration or the data cannot be used as it is.
    """
    settings, seed = config.finetune, config.run.seed
    every = build_perspectives(config.judges)
    perspectives = {key: p for key, p in every.items() if config.judges.pools[key].model == name}
    engine = config.judge_engines[name]
    model = resolve_model(engine.model, engine.adapter)
    renderer = ChatRenderer(model, engine.enable_thinking)
    if rated is None:
        units, digest = _preferences(config, file, perspectives, renderer)
    else:
        check_perspectives(rated.labelled.dimensions, every)
        units, digest = _ratings(config, rated, perspectives, renderer)
    epochs = [units(False, f"{seed}/{epoch}") for epoch in range(settings.epochs)]
    if rated is not None and not epochs[0]:
        raise DataError(f"{file} has no rating that a judge of models.{name} could learn from.")
    contents = {"preferences" if rated is None else "ratings": digest}
    contents |= {f"rubric of {key}": p.rubric.digest_of_all for key, p in perspectives.items()}
    task: Task = "preference" if rated is None else "supervised"
    return Examples(model, epochs, units(True, str(seed)), contents, task)


def _ratings(
    config: Config, rated: Rated, perspectives: Mapping[str, Perspective], renderer: ChatRenderer
) -> tuple[Units, str]:
    """Return the maker of the units, and the digest of the data."""
    labelled, settings = rated.labelled, config.finetune

    def units(held: bool, pass_seed: str) -> list[Unit]:
        return rating_units(
            [row for row in labelled.items if _is_used(row.item.scenario, held, rated.heldout, settings)],
            labelled.dimensions,
            config.judges,
            perspectives,
            renderer,
            pass_seed,
            settings.max_tokens,
        )

    return units, text_digest(repr(labelled))


def _is_used(scenario: Scenario, held: bool, heldout: Collection[str], settings: FinetuneConfig) -> bool:
    """Return whether a scenario is one of those that measure (`held`), or of those that are learned from."""
    name = scenario.scenario_id
    return name in heldout if held else learned_from(name, heldout, settings)


def _preferences(
    config: Config, file: Path, perspectives: Mapping[str, Perspective], renderer: ChatRenderer
) -> tuple[Units, str]:
    """Return the same of pairs."""
    settings = config.finetune
    pairs, splits = read_preferences(file)
    scenarios = [pair.better.scenario for pair in pairs]
    heldout = heldout_scenarios(scenarios, splits, settings.heldout_share, config.run.seed)

    def units(held: bool, pass_seed: str) -> list[Unit]:
        chosen = [pair for pair in pairs if _is_used(pair.better.scenario, held, heldout, settings)]
        return preference_units(chosen, config.judges, perspectives, renderer, pass_seed, settings.max_tokens)

    return units, text_digest(repr(pairs))


# ---- the report ---------------------------------------------------------------------------------


def compare(config: Config, name: str, rated: Rated, directory: Path) -> None:
    """Judge the held-out rows by the model as it was and as it is now; print and write how far each agrees.

    Writes `judge_report.json` into the run directory, and the figures into the model's card.
    """
    labelled, heldout = rated.labelled, rated.heldout
    scenarios = [row.item.scenario.scenario_id for row in labelled.items]
    learned = sum(learned_from(scenario, heldout, config.finetune) for scenario in scenarios)
    rows = tuple(row for row in labelled.items if row.item.scenario.scenario_id in heldout)
    labelled = replace(labelled, items=rows)
    trained = replace(config.models[name], model=str(directory / "model"), adapter=None)
    console = Console()
    judged = []
    for when, models in (("before", config.models), ("after", {**config.models, name: trained})):
        console.print(f"Judging {len(rows)} held-out replies by the model {when} training.")
        judged.append(judge_all(replace(config, models=models), [row.item for row in rows], console))
    scales = {key: perspective.scale for key, perspective in build_perspectives(config.judges).items()}
    found = improvements(labelled, judged[0], judged[1], scales, Bootstrap(seed=config.run.seed))
    table = [f"{'':<14}{'':<10}{'before':<24}{'after':<24}change (95% interval over scenarios)"]
    for dimension, figures in found.items():
        for figure, (before, after, change) in figures.items():
            table.append(f"{dimension:<14}{figure:<10}{before!s:<24}{after!s:<24}{change}")
            if change.low is not None and change.high is not None and change.low <= 0 <= change.high:
                table[-1] += "  the interval spans zero: no change is shown"
    console.print("\n".join(table), markup=False, highlight=False, soft_wrap=True)
    plain = {
        dimension: {name: [asdict(figure) for figure in three] for name, three in figures.items()}
        for dimension, figures in found.items()
    }
    write_json_atomic(directory / "judge_report.json", {"rows": len(rows), "figures": plain})
    warning = f"It learned from {learned} rows only, fewer than {_FEW}: trust it little."
    few = "" if learned >= _FEW else f"\n{warning}\n"
    card = f"# A judge, trained from {config.finetune.data}\n{few}\n```text\n" + "\n".join(table) + "\n```\n"
    write_text_atomic(directory / "model" / "README.md", card)
    if few:
        console.print(few.strip(), markup=False)
