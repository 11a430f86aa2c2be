"""`perm-ray judge train`: teach a judge from ratings, and compare it before and after on scenarios held out.

What is trained is the very query that scoring mode `expected` makes; the result is a model folder that
`models.<name>.model=` takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from perm_ray.cli.finetune import config_of, train_on
from perm_ray.config.schema import Config
from perm_ray.data.graded import examples_file
from perm_ray.data.items import has_preferences, read_examples, read_preferences
from perm_ray.errors import ConfigError, DataError
from perm_ray.evaluation.calibration.labelled import check_perspectives
from perm_ray.evaluation.calibration.labels import read_labels
from perm_ray.files import text_digest
from perm_ray.judges.perspective import Perspective
from perm_ray.judges.startup import build_perspectives
from perm_ray.models.chat import ChatRenderer
from perm_ray.models.resolve import resolve_model
from perm_ray.runs.examples import Unit, heldout_scenarios, preference_units, rating_units
from perm_ray.runs.finetune import Examples, check_finetune

Units = Callable[[bool, str], list[Unit]]  # of those held out or the others, drawn with a seed


def run(options: argparse.Namespace) -> int:
    """Train a judge, or say what would be run."""
    config = config_of(options, "builtin:graded")
    examples = examples_of(config, trained_model(config, options.model))
    return train_on(options, config, examples, "judge train")


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
    check_finetune(config)
    settings, seed = config.finetune, config.run.seed
    file = examples_file(settings.data)
    every = build_perspectives(config.judges)
    perspectives = {key: p for key, p in every.items() if config.judges.pools[key].model == name}
    engine = config.judge_engines[name]
    model = resolve_model(engine.model, engine.adapter)
    renderer = ChatRenderer(model, engine.enable_thinking)
    preferred = has_preferences(file)
    if preferred:
        units, digest = _preferences(config, file, perspectives, renderer)
    else:
        units, digest = _ratings(config, file, every, perspectives, renderer)
    epochs = [units(False, f"{seed}/{epoch}") for epoch in range(settings.epochs)]
    if not preferred and not epochs[0]:
        raise DataError(f"{file} has no rating that a judge of models.{name} could learn from.")
    contents = {"preferences" if preferred else "ratings": digest}
    contents |= {f"rubric of {key}": p.rubric.digest_of_all for key, p in perspectives.items()}
    return Examples(
        model, epochs, units(True, str(seed)), contents, "preference" if preferred else "supervised"
    )


def _ratings(
    config: Config,
    file: Path,
    every: Mapping[str, Perspective],
    perspectives: Mapping[str, Perspective],
    renderer: ChatRenderer,
) -> tuple[Units, str]:
    """Return the maker of the units, and the digest of the data."""
    settings, seed = config.finetune, config.run.seed
    labelled = read_labels(file, "jsonl")
    check_perspectives(labelled.dimensions, every)
    scenarios = [row.item.scenario for row in labelled.items]
    heldout = heldout_scenarios(scenarios, read_examples(file).splits, settings.heldout_share, seed)

    def units(held: bool, pass_seed: str) -> list[Unit]:
        rows = [row for row in labelled.items if (row.item.scenario.scenario_id in heldout) == held]
        return rating_units(
            rows,
            labelled.dimensions,
            config.judges,
            perspectives,
            renderer,
            pass_seed,
            settings.max_tokens,
            every_criterion=False,
        )

    return units, text_digest(repr(labelled))


def _preferences(
    config: Config, file: Path, perspectives: Mapping[str, Perspective], renderer: ChatRenderer
) -> tuple[Units, str]:
    """Return the same of pairs."""
    settings = config.finetune
    pairs, splits = read_preferences(file)
    scenarios = [pair.better.scenario for pair in pairs]
    heldout = heldout_scenarios(scenarios, splits, settings.heldout_share, config.run.seed)

    def units(held: bool, pass_seed: str) -> list[Unit]:
        chosen = [pair for pair in pairs if (pair.better.scenario.scenario_id in heldout) == held]
        return preference_units(chosen, config.judges, perspectives, renderer, pass_seed, settings.max_tokens)

    return units, text_digest(repr(pairs))
