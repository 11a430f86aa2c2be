"""`perm-ray judge train`: teach a judge from ratings, and compare it before and after on scenarios held out.

What is trained is the very query that scoring mode `expected` makes; the result is a model folder that
`models.<name>.model=` takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perm_ray.cli.finetune import config_of, describe, parser, train_on
from perm_ray.cluster.session import authenticate
from perm_ray.config.schema import Config
from perm_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from perm_ray.judges.perspective import Perspective
    from perm_ray.models.chat import ChatRenderer
    from perm_ray.runs.examples import Unit
    from perm_ray.runs.finetune import Examples

_DATA = "builtin:graded"


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
    return train_on(config, examples, options.resume, "judge train")


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
    from perm_ray.runs.examples import heldout_scenarios, rating_units

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

    epochs = [units(held=False, pass_seed=f"{seed}/{epoch}") for epoch in range(settings.epochs)]
    return epochs, units(held=True, pass_seed=str(seed)), text_digest(repr(labelled))


def _preferences(
    config: Config, file: Path, perspectives: Mapping[str, Perspective], renderer: ChatRenderer
) -> tuple[list[list[Unit]], list[Unit], str]:
    """Return the same of pairs."""
    from perm_ray.data.items import read_preferences
    from perm_ray.files import text_digest
    from perm_ray.runs.examples import heldout_scenarios, preference_units

    settings, seed = config.finetune, config.run.seed
    pairs, splits = read_preferences(file)
    scenarios = [pair.better.scenario for pair in pairs]
    heldout = heldout_scenarios(scenarios, splits, settings.heldout_share, seed)

    def units(held: bool, pass_seed: str) -> list[Unit]:
        chosen = [pair for pair in pairs if (pair.better.scenario.scenario_id in heldout) == held]
        return preference_units(chosen, config.judges, perspectives, renderer, pass_seed, settings.max_tokens)

    epochs = [units(held=False, pass_seed=f"{seed}/{epoch}") for epoch in range(settings.epochs)]
    return epochs, units(held=True, pass_seed=str(seed)), text_digest(repr(pairs))
