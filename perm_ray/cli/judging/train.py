"""`perm-ray judge train`: teach a judge from ratings, and compare it before and after on scenarios held out.

What is trained is the very query that scoring mode `expected` makes; the result is a model folder that
`models.<name>.model=` takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from perm_ray.cli.finetune import config_of, train_on
from perm_ray.cli.judging.calibrate import judge_pairs
from perm_ray.cli.judging.judged import judge_all
from perm_ray.config.schema import Config
from perm_ray.config.training import FinetuneConfig
from perm_ray.data.graded import examples_file
from perm_ray.data.items import Preference, has_preferences, read_examples, read_preferences
from perm_ray.errors import ConfigError, DataError
from perm_ray.evaluation.calibration.agreement import Bootstrap
from perm_ray.evaluation.calibration.comparison import improvements
from perm_ray.evaluation.calibration.labelled import LabelledSet, check_perspectives
from perm_ray.evaluation.calibration.labels import read_labels
from perm_ray.evaluation.calibration.pairs import figure_rows, pair_figures
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

_NO_CHANGE = "  the interval spans zero: no change is shown"
_FEW = 50  # rows: a judge that learned from fewer is made, with a warning


@dataclass(frozen=True)
class Rated:
    """Replies that people have rated; `heldout` are the scenarios that only measure."""

    labelled: LabelledSet
    heldout: Collection[str]

    @property
    def scenarios(self) -> list[str]:
        """Return each row's scenario."""
        return [row.item.scenario.scenario_id for row in self.labelled.items]


@dataclass(frozen=True)
class Preferred:
    """Pairs of which people prefer one; `heldout` are the scenarios that only measure."""

    pairs: Sequence[Preference]
    heldout: Collection[str]

    @property
    def scenarios(self) -> list[str]:
        """Return each pair's scenario."""
        return [pair.better.scenario.scenario_id for pair in self.pairs]


Setups = Sequence[tuple[str, Config]]  # before and after training
Units = Callable[[bool, str], list[Unit]]  # of those held out or the others, drawn with a seed


def run(options: argparse.Namespace) -> int:
    """Train a judge and compare it with what it was, or say what would be run."""
    config = config_of(options, "builtin:graded")
    name = trained_model(config, options.model)
    check_finetune(config)
    file = examples_file(config.finetune.data)
    found = read_preferred(config, file) if has_preferences(file) else read_rated(config, file)
    examples = examples_of(config, name, file, found)
    directory = train_on(options, config, examples)
    if directory is not None and examples.heldout:
        compare(config, name, found, directory)
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


def read_preferred(config: Config, file: Path) -> Preferred:
    """Return the pairs, and the ids of the scenarios that only measure. Raises `DataError`."""
    pairs, splits = read_preferences(file)
    scenarios = [pair.better.scenario for pair in pairs]
    share, seed = config.finetune.heldout_share, config.run.seed
    return Preferred(pairs, heldout_scenarios(scenarios, splits, share, seed))


def examples_of(config: Config, name: str, file: Path, found: Rated | Preferred) -> Examples:
    """Check and render what the model `name` learns from: the ratings or the pairs of `file`.

    Raises:
        UserError: Something in the configuration or the data cannot be used as it is.
    """
    settings, seed = config.finetune, config.run.seed
    every = build_perspectives(config.judges)
    perspectives = {key: p for key, p in every.items() if config.judges.pools[key].model == name}
    engine = config.judge_engines[name]
    model = resolve_model(engine.model, engine.adapter)
    renderer = ChatRenderer(model, engine.enable_thinking)
    if isinstance(found, Preferred):
        units, digest = _preferences(config, found, perspectives, renderer)
    else:
        check_perspectives(found.labelled.dimensions, every)
        units, digest = _ratings(config, found, perspectives, renderer)
    epochs = [units(False, f"{seed}/{epoch}") for epoch in range(settings.epochs)]
    if not epochs[0]:
        raise DataError(f"{file} has no rating that a judge of models.{name} could learn from.")
    contents = {"ratings" if isinstance(found, Rated) else "preferences": digest}
    contents |= {f"rubric of {key}": p.rubric.digest_of_all for key, p in perspectives.items()}
    task: Task = "supervised" if isinstance(found, Rated) else "preference"
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
    config: Config, found: Preferred, perspectives: Mapping[str, Perspective], renderer: ChatRenderer
) -> tuple[Units, str]:
    """Return the same of pairs."""
    settings, pairs, heldout = config.finetune, found.pairs, found.heldout

    def units(held: bool, pass_seed: str) -> list[Unit]:
        chosen = [pair for pair in pairs if _is_used(pair.better.scenario, held, heldout, settings)]
        return preference_units(chosen, config.judges, perspectives, renderer, pass_seed, settings.max_tokens)

    return units, text_digest(repr(list(pairs)))


# ---- the report ---------------------------------------------------------------------------------


def compare(config: Config, name: str, found: Rated | Preferred, directory: Path) -> None:
    """Judge what is held out by the model as it was and as it is now; print and write how far each agrees.

    Writes `judge_report.json` into the run directory, and the figures into the model's card.
    """
    trained = replace(config.models[name], model=str(directory / "model"), adapter=None)
    setups = [
        (when, replace(config, models=models))
        for when, models in (("before", config.models), ("after", {**config.models, name: trained}))
    ]
    console = Console()
    if isinstance(found, Rated):
        plain, table = _compare_ratings(setups, found, console)
    else:
        plain, table = _compare_pairs(setups, found, console)
    console.print(table, markup=False, highlight=False, soft_wrap=True)
    write_json_atomic(directory / "judge_report.json", plain)
    learned = sum(learned_from(scenario, found.heldout, config.finetune) for scenario in found.scenarios)
    warning = f"It learned from {learned} rows only, fewer than {_FEW}: trust it little."
    few = "" if learned >= _FEW else f"\n{warning}\n"
    card = f"# A judge, trained from {config.finetune.data}\n{few}\n```text\n{table}\n```\n"
    write_text_atomic(directory / "model" / "README.md", card)
    if few:
        console.print(few.strip(), markup=False)


def _compare_ratings(setups: Setups, rated: Rated, console: Console) -> tuple[dict[str, object], str]:
    rows = tuple(row for row in rated.labelled.items if row.item.scenario.scenario_id in rated.heldout)
    labelled = replace(rated.labelled, items=rows)
    judged = []
    for when, config in setups:
        console.print(f"Judging {len(rows)} held-out replies by the model {when} training.")
        judged.append(judge_all(config, [row.item for row in rows], console))
    config = setups[0][1]
    scales = {key: perspective.scale for key, perspective in build_perspectives(config.judges).items()}
    found = improvements(labelled, judged[0], judged[1], scales, Bootstrap(seed=config.run.seed))
    table = [f"{'':<14}{'':<10}{'before':<24}{'after':<24}change (95% interval over scenarios)"]
    for dimension, figures in found.items():
        for figure, (before, after, change) in figures.items():
            table.append(f"{dimension:<14}{figure:<10}{before!s:<24}{after!s:<24}{change}")
            if change.low is not None and change.high is not None and change.low <= 0 <= change.high:
                table[-1] += _NO_CHANGE
    plain = {
        dimension: {name: [asdict(figure) for figure in three] for name, three in figures.items()}
        for dimension, figures in found.items()
    }
    return {"rows": len(rows), "figures": plain}, "\n".join(table)


def _compare_pairs(setups: Setups, preferred: Preferred, console: Console) -> tuple[dict[str, object], str]:
    pairs = [pair for pair in preferred.pairs if pair.better.scenario.scenario_id in preferred.heldout]
    judged = []
    for when, config in setups:
        console.print(f"Judging {len(pairs)} held-out pairs by the model {when} training.")
        judged.append(judge_pairs(config, pairs, console))
    figures = pair_figures(pairs, judged, setups[0][1].run.seed)
    table = [f"{'':<14}{'before':<24}{'after':<24}change in the share of pairs it orders as people do"]
    for (name, *texts, _), (_, _, change) in zip(figure_rows(figures), figures.values(), strict=True):
        table.append(f"{name:<14}" + "".join(f"{text:<24}" for text in texts).rstrip())
        if change.low <= 0 <= change.high:
            table[-1] += _NO_CHANGE
    plain = {name: [asdict(figure) for figure in three] for name, three in figures.items()}
    return {"pairs": len(pairs), "shares": plain}, "\n".join(table)
