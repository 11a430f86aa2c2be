"""`perm-ray finetune`: teach a policy to answer from demonstrations, before it learns from rewards."""

from __future__ import annotations

import argparse
from pathlib import Path

from perm_ray.cli.train import resumed_config
from perm_ray.config.load import dump_config, load_config
from perm_ray.config.schema import Config
from perm_ray.data.graded import read_demonstrations
from perm_ray.data.prompts import load_template
from perm_ray.files import text_digest
from perm_ray.models.chat import ChatRenderer
from perm_ray.models.resolve import resolve_model
from perm_ray.runs.examples import batches_of, demonstration_units, heldout_scenarios, learned_from
from perm_ray.runs.finetune import Examples, check_finetune, finetune
from perm_ray.runs.signals import StopSignals


def run(options: argparse.Namespace) -> int:
    """Fine-tune a policy, or say what would be run."""
    config = config_of(options, "builtin:demos")
    train_on(options, config, demonstrations(config))
    return 0


def config_of(options: argparse.Namespace, data: str) -> Config:
    """Return the configuration that the options ask for; `data` is the default of `--data`."""
    chosen = [f"finetune.data={options.data}"] if options.data is not None else []
    if options.resume is not None:
        return resumed_config(options.resume, options.config, [*chosen, *options.overrides])
    return load_config(options.config or "finetune", [f"finetune.data={data}", *chosen, *options.overrides])


def train_on(options: argparse.Namespace, config: Config, examples: Examples) -> Path | None:
    """Train until the end; returns the run directory, None for `--dry-run`. A signal raises `Interrupted`."""
    if options.dry_run:
        print(_describe(config, examples), end="")
        return None
    with StopSignals() as stop:
        directory = finetune(config, examples, options.resume, stop)
    print(f"Model:  {directory.path / 'model'}")
    return directory.path


def demonstrations(config: Config) -> Examples:
    """Read, check and render the demonstrations. Raises `UserError`s."""
    check_finetune(config)
    settings, prompt = config.finetune, config.prompt
    rows = read_demonstrations(settings.data)
    scenarios = [item.scenario for item in rows.items]
    heldout = heldout_scenarios(scenarios, rows.splits, settings.heldout_share, config.run.seed)
    template = load_template(prompt.template)
    model = resolve_model(config.policy.model)
    renderer = ChatRenderer(model, prompt.enable_thinking)
    units = demonstration_units(
        rows.items, template, prompt.prefix, renderer, prompt.max_tokens, settings.max_tokens
    )
    pairs = list(zip(scenarios, units, strict=True))
    learned = [unit for scenario, unit in pairs if learned_from(scenario.scenario_id, heldout, settings)]
    return Examples(
        model=model,
        epochs=[learned] * settings.epochs,
        heldout=[unit for scenario, unit in pairs if scenario.scenario_id in heldout],
        contents={"demonstrations": text_digest(repr(rows)), "prompt template": template.digest_of_all},
    )


def _describe(config: Config, examples: Examples) -> str:
    settings = config.finetune
    batches = batches_of(examples.epochs, settings.batch_size, config.run.seed)
    train, heldout = (sum(map(len, units)) for units in (examples.epochs[0], examples.heldout))
    tokens = sum(len(sequence) for batch in batches for sequence in batch)
    return (
        f"{dump_config(config)}\n{train} examples to learn from, {heldout} held out to measure\n"
        f"{settings.epochs} epochs, {len(batches)} updates, {tokens:,} tokens "
        "(common beginnings are computed once)\n"
    )
