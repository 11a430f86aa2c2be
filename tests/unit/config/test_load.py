"""Loading and writing the configuration: values, layers, and what a mistake is answered with."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from perm_ray.config.load import dump_config, load_config
from perm_ray.config.redact import REDACTED, is_secret_key, redact, redact_text
from perm_ray.config.schema import Config, TrackingConfig
from perm_ray.errors import ConfigError

BASE = Path(__file__).parents[3] / "configs" / "base.yaml"

SHARED_ENGINE = """
judges:
  engines:
    shared: {max_num_seqs: 16}
  pools:
    resonation: {engine: shared}
    expression: {engine: shared}
    reception: {engine: shared}
    bystander: {engine: shared, retries: 3}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message_of(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert "omegaconf" not in message.lower()
    return message


def keys_of(values: object, prefix: str = "") -> list[str]:
    if not isinstance(values, dict) or not values:
        return [prefix]
    return [key for name, value in values.items() for key in keys_of(value, f"{prefix}.{name}".strip("."))]


def test_defaults() -> None:
    assert load_config(None) == Config()


def test_base_yaml_is_the_schema() -> None:
    assert load_config(BASE) == Config()
    tree = OmegaConf.to_container(OmegaConf.load(BASE))
    assert keys_of(tree) == keys_of(Config().as_dict())  # the schema's order, too


def test_base_yaml_explains_every_key() -> None:
    lines = [line for line in BASE.read_text(encoding="utf-8").splitlines() if line.strip()]
    values = [line for line in lines if re.match(r"\s*\w+: +[^#\s]", line)]
    assert len(values) == len(keys_of(Config().as_dict()))
    assert [line for line in values if "  # " not in line] == []


def test_file_then_overrides(tmp_path: Path) -> None:
    path = written(tmp_path, "run: {steps: 5, seed: 7}\ntrainer:\n  lr: 1e-5\n  adam_betas: [0.8, 0.9]\n")
    config = load_config(
        path, ["run.steps=6", "run.name=night", "rewards.weights.reception=2", "ray.num_cpus=2"]
    )
    assert (config.run.steps, config.run.seed, config.run.name) == (6, 7, "night")
    assert (config.trainer.lr, config.trainer.adam_betas) == (1e-5, (0.8, 0.9))
    assert config.rewards.weights == {"reception": 2.0}
    assert load_config(path, ["ray.num_cpus=2", "ray.num_cpus=null"]).ray.num_cpus is None
    assert load_config(path, ["trainer.adam_betas=[0.5,0.6]"]).trainer.adam_betas == (0.5, 0.6)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.run.steps = 1  # type: ignore[misc]


def test_an_empty_file_or_section_changes_nothing(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")) == Config()
    assert load_config(written(tmp_path, "run:\njudges:\n  engines:\n")) == Config()


def test_engines_and_pools_in_a_file_replace_the_default_set(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, SHARED_ENGINE), ["judges.pools.resonation.retries=2"])
    assert list(config.judges.engines) == ["shared"]
    assert config.judges.engines["shared"].max_num_seqs == 16
    pools = config.judges.pools
    assert list(pools) == ["resonation", "expression", "reception", "bystander"]
    assert [pool.retries for pool in pools.values()] == [2, 1, 1, 3]


FAR = "endpoints: {far: {base_url: 'http://host/v1', model: m}}"


def test_pools_that_ask_endpoints_start_no_engine(tmp_path: Path) -> None:
    pools = "pools: {resonation: {engine: far}, bystander: {engine: %s}}"
    for other, left in (("far", []), ("bystander", ["bystander"])):
        text = f"judges:\n  {FAR}\n  {pools % other}"
        config = load_config(written(tmp_path, text))
        assert list(config.judges.engines) == left
        assert load_config(written(tmp_path, dump_config(config))) == config
    alone = load_config(written(tmp_path, f"judges:\n  {FAR}")).judges
    assert len(alone.engines) == len(alone.pools) == 4  # the default pools ask them


def test_an_endpoint_may_have_the_name_that_pools_ask_by_default(tmp_path: Path) -> None:
    text = f"judges:\n  {FAR.replace('far', 'judge')}\n  pools: {{resonation: {{retries: 2}}}}"
    judges = load_config(written(tmp_path, text)).judges
    assert (list(judges.engines), judges.model(judges.pools["resonation"])) == ([], "m")


def test_an_override_changes_one_value_of_an_entry() -> None:
    judges = load_config(None, ["judges.pools.resonation.retries=2"]).judges
    assert judges.pools["resonation"] == dataclasses.replace(Config().judges.pools["resonation"], retries=2)
    assert judges.pools["expression"] == Config().judges.pools["expression"]
    assert "did you mean judges.pools.resonation" in message_of(None, "judges.pools.resonatoin.retries=2")


def test_a_pool_without_an_engine_is_told_of_the_rule(tmp_path: Path) -> None:
    message = message_of(written(tmp_path, "judges: {pools: {resonation: {rubric: mine.md}}}"))
    assert "judges.pools.resonation" in message
    assert "replaces all four" in message


def test_anchors_repeat_values(tmp_path: Path) -> None:
    text = SHARED_ENGINE.replace("{engine: shared}", "&pool {engine: shared, retries: 4}", 1)
    text = text.replace("expression: {engine: shared}", "expression: *pool")
    assert load_config(written(tmp_path, text)).judges.pools["expression"].retries == 4


def test_missing_file(tmp_path: Path) -> None:
    assert str(tmp_path / "none.yaml") in message_of(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run:\n  steps: 5\n seed: 1\n", "line 3"),
        ("run: {steps: 5\n", "line 2"),
        ("run:\n  steps: 1\n  steps: 2\n", "line 3: found duplicate key steps"),
        ("42\n", "cannot be read as sections"),
        ("- run\n", "must be a section with keys (run, ray"),
        ("runs: {steps: 5}\n", "Unknown key runs in {path}: did you mean run."),
        ("run: {step: 5}\n", "Unknown key run.step in {path}: did you mean run.steps."),
        ("run: {lr: 5}\n", "Unknown key run.lr in {path}: did you mean trainer.lr."),
        ("run: {zzz: 5}\n", "the keys of run are name, dir, steps"),
        ("judges: {engines: {a: {replica: 5}}}\n", "did you mean judges.engines.a.replicas."),
        ("judges: {engines: {1: {replicas: 5}}}\n", "judges.engines.1 in {path} must be a name"),
        ("on: 5\n", "Unknown key True in {path}"),
        ("run: 5\n", "run in {path} must be a section with keys (name, dir"),
        ("run: {steps: many}\n", "run.steps must be a whole number, found 'many' in {path}."),
        ("run: {steps: true}\n", "run.steps must be a whole number, found True in {path}."),
        ("run: {steps: null}\n", "run.steps must be a whole number, found None in {path}."),
        ("run: {steps: {a: 1}}\n", "run.steps must be a whole number, found {{'a': 1}} in {path}."),
        ("run: {steps: '???'}\n", "run.steps must be a whole number, found '???' in {path}."),
        ("run: {dir: [a]}\n", "run.dir must be text, found ['a'] in {path}."),
        ("run: {deterministic: 1.5}\n", "run.deterministic must be true or false, found 1.5 in {path}."),
        ("ray: {num_cpus: all}\n", "ray.num_cpus must be a whole number or null, found 'all' in {path}."),
        ("trainer: {adam_betas: [1, 2, 3]}\n", "trainer.adam_betas must be a list of 2 numbers"),
        ("trainer: {adam_betas: {a: 1}}\n", "trainer.adam_betas must be a list of 2 numbers"),
        ("rewards: {weights: {reception: much}}\n", "rewards.weights.reception must be a number"),
        ("run: {steps: 0}\n", "run.steps must be greater than 0, found 0"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, expected: str) -> None:
    path = written(tmp_path, text)
    assert expected.format(path=path) in message_of(path)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.steps", "expected a.b=c"),
        ("--run.steps=3", "expected a.b=c"),
        ("run..steps=3", "expected a.b=c"),
        ("=3", "expected a.b=c"),
        ("run.stepz=3", "Unknown key run.stepz in the override 'run.stepz=3': did you mean run.steps."),
        ("run.steps.more=3", "run.steps must be a whole number"),
        ("run.steps=", "run.steps must be a whole number, found None"),
        ("run.steps=-1", "run.steps must be greater than 0, found -1"),
        ("run=3", "must be a section with keys"),
        ("trainer.adam_betas=[0.9", "is not valid YAML: did not find expected"),
        ("trainer.dtype=float16", "trainer.dtype must be one of bfloat16, float32, found 'float16'"),
        ("judges.engines.resonation.replica=2", "did you mean judges.engines.resonation.replicas."),
    ],
)
def test_mistakes_in_an_override(override: str, expected: str) -> None:
    assert expected in message_of(None, override)


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("trainer.objective", {"loss": "ppo"}, "loss must be one of dapo, grpo, dr_grpo, gspo, cispo"),
        ("trainer.objective", {"dual_clip": 1.1}, "dual_clip must be null, or more than 1 + clip_high"),
        ("trainer.objective", {"dual_clip": 3.0, "loss": "cispo"}, "with a loss other than cispo"),
        ("trainer.objective", {"kl_estimator": "k1"}, "k2 or k3 unless kl_ratio_weighted is true"),
        ("trainer.objective", {"mismatch": "true"}, "mismatch must be one of none, token_truncate"),
        ("trainer.objective", {"mismatch_low": 1.0}, "bounds with 1 between them"),
        ("trainer.objective", {"mismatch_high": 0.5}, "bounds with 1 between them"),
        ("trainer.objective", {"epochs": 0}, "trainer.objective.epochs must be greater than 0"),
        ("trainer.objective", {"minibatches": 65}, "at most the completions of a step, 64, found 65"),
        ("rollout", {"max_resamples": -1}, "rollout.max_resamples must be 0 or more"),
        ("rewards", {"truncated": "drop"}, "rewards.truncated must be one of keep, mask, penalise"),
        ("rewards", {"truncated_penalty": 0.0}, "rewards.truncated_penalty must be greater than 0"),
        ("rewards", {"advantage_baseline": "leave_one_out"}, "none or batch with leave_one_out"),
        (
            "rewards",
            {"composition": "normalize_then_sum", "advantage_scaling": "none"},
            "mean and group with normalize_then_sum",
        ),
    ],
)
def test_objectives_that_make_no_sense(section: str, values: dict[str, object], expected: str) -> None:
    overrides = [f"{section}.{name}={value}" for name, value in values.items()]
    assert expected in message_of(None, *overrides)


@pytest.mark.parametrize(
    "text", ["${oc.env:PATH}", "a-${oc.env:X}", "${run.dir}", "${oc.${a}:b}", "${oc.env:X"]
)
def test_interpolation_is_refused(tmp_path: Path, text: str) -> None:
    for message in (
        message_of(written(tmp_path, f"tracking: {{mlflow_uri: '{text}'}}")),
        message_of(None, f"tracking.mlflow_uri={text}"),
        message_of(None, f"trainer.adam_betas=['{text}', 1]"),
    ):
        assert "names of environment variables" in message
        assert os.environ["PATH"] not in message


def test_messages_mask_credentials(tmp_path: Path) -> None:
    assert "hunter2" not in message_of(None, "tracking.mlflow_url=https://me:hunter2@host")
    far = written(tmp_path, f"judges:\n  {FAR}")
    for mistake in ("api_key=hunter2", "base_url=https://me:hunter2@host/v1", "api_key_env=hunter2"):
        message = message_of(far, f"judges.endpoints.far.{mistake}")
        assert "hunter2" not in message
        assert "judges.endpoints" in message


def test_dump_is_read_back(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, SHARED_ENGINE), ["run.steps=3", "rewards.weights.reception=2"])
    text = dump_config(config)
    assert load_config(written(tmp_path, text)) == config
    assert re.findall(r"^(\w+):", text, re.MULTILINE) == list(typing.get_type_hints(Config))


def test_dump_masks_credentials() -> None:
    tracking = TrackingConfig(mlflow_uri="https://me:hunter2@host/mlflow")
    text = dump_config(dataclasses.replace(Config(), tracking=tracking))
    assert f"https://{REDACTED}@host/mlflow" in text
    assert "hunter2" not in text


def test_redaction() -> None:
    values = {
        "api_key": "k",
        "hf_token": "t",
        "nested": [{"db-password": "p", "empty_secret": "", "judge_api_key_env": "JUDGE_KEY"}],
        "max_tokens": 5,
        "note": "see https://a:b@c:80/x?token=abc&page=2",
    }
    assert redact(values) == {
        "api_key": REDACTED,
        "hf_token": REDACTED,
        "nested": [{"db-password": REDACTED, "empty_secret": "", "judge_api_key_env": "JUDGE_KEY"}],
        "max_tokens": 5,
        "note": f"see https://{REDACTED}@c:80/x?token={REDACTED}&page=2",
    }
    assert redact_text("https://me:p@ss@host/a@b") == f"https://{REDACTED}@host/a@b"


def test_no_key_of_the_schema_looks_like_a_secret() -> None:
    names = [part for key in keys_of(Config().as_dict()) for part in key.split(".")]
    assert [name for name in names if is_secret_key(name)] == []


def test_importing_is_quick_and_light() -> None:
    code = "import sys, time; t = time.process_time(); import perm_ray.config.load; "
    code += "print(time.process_time() - t, *{'torch', 'ray', 'vllm', 'mlflow', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    seconds, *heavy = done.stdout.split()
    assert heavy == []
    assert float(seconds) < 0.3
