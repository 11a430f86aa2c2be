"""The configuration of the smallest whole run there is: real engines, judges and trainer, a tiny model."""

from __future__ import annotations

from pathlib import Path

_CONFIG = """
run: {{steps: 4, deterministic: true, dir: {runs}}}
policy: {{model: {model}}}
prompt: {{prefix: "# Analysis\\n", max_tokens: 3000}}
rollout:
  prompts_per_step: 2
  completions_per_prompt: 3
  max_completion_tokens: 24
  engine: {{max_model_len: 4096, kv_cache_gb: 0.1}}
models: {{judge: {{model: {model}, max_model_len: 8192, kv_cache_gb: 0.1}}}}
judges:
  pools:
    resonation: {{scoring: {{mode: expected, min_mass: 0.0}}}}
    expression: {{scoring: {{mode: expected, min_mass: 0.0}}}}
    reception: {{scoring: {{mode: expected, min_mass: 0.0}}}}
    bystander: {{scoring: {{mode: expected, min_mass: 0.0}}}}
trainer: {{micro_batch_tokens: 4096, lr: 1.0e-3, num_cpus: 1, num_threads: 1}}
evaluation: {{num_scenarios: 2}}
checkpoint: {{every: 3}}
tracking: {{mlflow: {mlflow}}}
"""


def tiny_run(model: Path, runs: Path, mlflow: bool = True) -> str:
    """The YAML of a run of the model in the folder `model`, with its run directory in `runs`.

    Four steps of 2 x 3 completions, checkpoints at the third and the last, bitwise reproducible.
    """
    return _CONFIG.format(model=model, runs=runs, mlflow="true" if mlflow else "false")
