"""`perm-ray serve MODEL_OR_RUN`: an OpenAI-compatible endpoint of a model, on loopback, until Ctrl-C."""

from __future__ import annotations

import argparse

from perm_ray.config.load import load_config
from perm_ray.errors import ConfigError, Interrupted
from perm_ray.models.resolve import check_context
from perm_ray.models.server import served
from perm_ray.runs.candidates import config_of_run, named_models, run_of
from perm_ray.runs.signals import StopSignals


def run(options: argparse.Namespace) -> int:
    """Serve the model, and say where it is and by which key; a signal ends it, with exit code 0."""
    config = load_config(options.config or config_of_run(run_of(options.model)), options.overrides)
    found = named_models(options.model)
    if options.before and len(found) == 1:
        raise ConfigError(f"--before is for the directory of a run, found {options.model}: leave it out.")
    name, folder = found[0] if options.before else found[-1]
    check_context(folder, config.rollout.engine.max_model_len, "rollout.engine.max_model_len")
    name = options.name or name
    print(f"Starting {name} ...", flush=True)
    with StopSignals():
        try:
            with served(folder, name, config.rollout.engine, config.run.seed, options.port) as server:
                print(f"Serving {name} at {server.base_url}, with the key {server.key}", flush=True)
                print("Ctrl-C ends it.", flush=True)
                code = server.process.wait()
        except Interrupted:
            return 0
    return code
