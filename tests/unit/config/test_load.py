"""Loading and writing the configuration: values, layers, and what a mistake is answered with."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from docs.generate import base_yaml
from perm_ray.config import CONFIGS
from perm_ray.config import engines as engine_config
from perm_ray.config.engines import EngineConfig
from perm_ray.config.load import dump_config, load_config
from perm_ray.config.redact import REDACTED, is_secret_key, redact, redact_text
from perm_ray.config.schema import Config, TrackingConfig
from perm_ray.config.training import TrainerConfig
from perm_ray.errors import ConfigError

BASE = Path(__file__).parents[3] / "configs" / "base.yaml"

ONE_MODEL = """
models:
  judge: {max_num_seqs: 16}
judges:
  pools:
    resonation: {retries: 1}
    expression: {model: judge}
    bystander: {retries: 3}
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


def test_every_key_is_described_and_fits_a_line() -> None:
    lines = base_yaml().splitlines()
    values = [i for i, line in enumerate(lines) if re.match(r"\s*\w+: +[^#\s]", line)]
    assert len(values) == len(keys_of(Config().as_dict()))
    plain = [lines[i] for i in values if "  # " not in lines[i] and "# " not in lines[i - 1][:10]]
    assert (plain, [line for line in lines if len(line) > 110]) == ([], [])


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
    assert load_config(written(tmp_path, "run:\nmodels:\njudges:\n  pools:\n")) == Config()


def test_models_and_pools_of_a_file_merge_with_the_default_ones(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, ONE_MODEL), ["judges.pools.resonation.retries=2"])
    assert {name: model.max_num_seqs for name, model in config.judge_engines.items()} == {"judge": 16}
    pools = config.judges.pools
    assert list(pools) == ["resonation", "expression", "reception", "bystander"]
    assert [pool.retries for pool in pools.values()] == [2, 1, 1, 3]


def test_null_removes_a_default_entry(tmp_path: Path) -> None:
    file = written(tmp_path, "judges: {pools: {bystander: null}}\nmodels: {other: {}, judge: null}\n")
    assert "judges.pools.resonation.model must be one of models (other)" in message_of(file)
    overrides = [f"judges.pools.{name}.model=other" for name in ("resonation", "expression", "reception")]
    config = load_config(file, overrides)
    assert list(config.judges.pools) == ["resonation", "expression", "reception"]
    assert list(config.judge_engines) == ["other"]
    assert list(load_config(file, [*overrides, "judges.pools.reception=null"]).judges.pools) == [
        *("resonation", "expression")
    ]


FAR = "models: {far: {base_url: 'http://host/v1', model: m}}"


def test_only_models_that_somebody_asks_are_started(tmp_path: Path) -> None:
    pools = "judges: {pools: {resonation: {model: far}, expression: {model: far}, reception: {model: far}, "
    for other, engines in (("far", []), ("judge", ["judge"])):
        text = f"{FAR}\n{pools}bystander: {{model: {other}}}}}}}"
        config = load_config(written(tmp_path, text))
        assert list(config.judge_engines) == engines
        assert list(config.judge_endpoints) == ["far"]
        assert load_config(written(tmp_path, dump_config(config))) == config
    alone = load_config(written(tmp_path, FAR))
    assert (list(alone.judge_engines), alone.judge_endpoints) == (["judge"], {})


def test_an_endpoint_may_take_the_default_models_place(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, FAR.replace("far", "judge")))
    assert config.judge_engines == {}
    pool = config.judges.pools["resonation"]
    assert (config.model_of(pool).model, config.replicas_of(pool)) == ("m", 1)


def test_an_override_changes_one_value_of_an_entry() -> None:
    judges = load_config(None, ["judges.pools.resonation.retries=2"]).judges
    assert judges.pools["resonation"] == dataclasses.replace(Config().judges.pools["resonation"], retries=2)
    assert judges.pools["expression"] == Config().judges.pools["expression"]
    assert "did you mean judges.pools.resonation" in message_of(None, "judges.pools.resonatoin.retries=2")


def test_anchors_repeat_values(tmp_path: Path) -> None:
    text = "judges: {pools: {resonation: &pool {retries: 4}, expression: *pool}}"
    assert load_config(written(tmp_path, text)).judges.pools["expression"].retries == 4


def test_a_shipped_file_has_a_name_and_a_mapping_will_do() -> None:
    assert load_config("local") == load_config(CONFIGS / "local.yaml")
    assert load_config("qwen2.5-7b").trainer.num_ranks == 4
    assert load_config("clusters/slurm").ray.address == "auto"
    config = load_config({"run": {"dir": Path("a b"), "steps": 3}, "trainer": {"adam_betas": (0.5, 0.6)}})
    assert (config.run.dir, config.run.steps, config.trainer.adam_betas) == ("a b", 3, (0.5, 0.6))
    with pytest.raises(ConfigError, match=r"run\.steps must be a whole number, found '3' in the mapping"):
        load_config({"run": {"steps": "3"}})


def test_local_asks_one_engine() -> None:
    config = load_config("local")
    (engine,) = config.judge_engines.values()
    assert (engine.max_model_len, engine.max_num_seqs, engine.kv_cache_gb) == (2048, 64, 0.5)
    assert {pool.scoring.mode for pool in config.judges.pools.values()} == {"expected"}
    assert {pool.fence for pool in config.judges.pools.values()} == {"group"}


@pytest.mark.parametrize("text", ["0123456", "12e4567", "no", "1_000", "2026-01-02", "1e5"])
def test_text_is_taken_as_it_stands(tmp_path: Path, text: str) -> None:
    config = load_config(None, [f"run.name={text}", f"data.train={text}"])
    assert (config.run.name, config.data.train) == (text, text)
    assert load_config(written(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize("text", ["my runs #2", "100%20 done?", "a: b", "[x", "'quoted'", "-", " "])
def test_no_text_is_cut_or_parsed(tmp_path: Path, text: str) -> None:
    config = load_config(None, [f"run.dir={text}"])
    assert config.run.dir == text
    assert load_config(written(tmp_path, dump_config(config))) == config
    assert load_config(None, ["run.name=x", "run.name=null"]).run.name is None


def test_other_values_are_read_as_yaml_1_2() -> None:
    config = load_config(None, ["run.seed=010", "trainer.lr=1e-5", "run.steps=0x10", "ray.share_gpus=True"])
    assert (config.run.seed, config.trainer.lr, config.run.steps) == (10, 1e-5, 16)
    assert config.ray.share_gpus is True
    assert "must be true or false, found 'no'" in message_of(None, "run.deterministic=no")


def test_a_copy_is_validated_too() -> None:
    with pytest.raises(ConfigError, match=r"^trainer\.lr must be greater than 0, found -1: change it"):
        dataclasses.replace(Config().trainer, lr=-1)
    with pytest.raises(ConfigError, match=r"^Unknown key trainer\.lrr: did you mean trainer\.lr\.$"):
        TrainerConfig(lrr=1)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999"])
def test_numbers_are_finite(value: str) -> None:
    assert "trainer.lr must be" in message_of(None, f"trainer.lr={value}")
    assert "trainer.weight_decay must be" in message_of(None, f"trainer.weight_decay={value}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("run.seed=-1", "run.seed must be in [0, 2147483648), found -1"),
        ("run.seed=2147483648", "found 2147483648"),
        ("tracking.experiment=", "tracking.experiment must be text that is not empty, found ''"),
        ("train.lrr=1", "Unknown key train.lrr in the override 'train.lrr=1': did you mean trainer.lr."),
        ("models.judge.rpm=3", "models.judge.rpm in the override 'models.judge.rpm=3' is a key of another"),
        ("models.far={base_url: http://host/v1}", "models.far.model in the override"),
    ],
)
def test_more_mistakes_in_an_override(override: str, expected: str) -> None:
    assert expected in message_of(None, override)


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
        ("models: {a: {replica: 5}}\n", "did you mean models.a.replicas."),
        ("models: {1: {replicas: 5}}\n", "models.1 in {path} must be a name"),
        ("on: 5\n", "True in {path} must be a name"),
        (
            "run: 5\n",
            "run must be a section with keys (name, dir, steps",
        ),
        ("run: {steps: many}\n", "run.steps must be a whole number, found 'many' in {path}: change"),
        ("run: {steps: true}\n", "run.steps must be a whole number, found True in {path}: change"),
        ("run: {steps: null}\n", "run.steps must be a whole number, found None in {path}: change"),
        ("run: {steps: {a: 1}}\n", "run.steps must be a whole number, found {{'a': 1}} in {path}: change"),
        ("run: {steps: '???'}\n", "run.steps must be a whole number, found '???' in {path}: change"),
        ("run: {dir: [a]}\n", "run.dir must be text, found ['a'] in {path}: change"),
        (
            "run: {deterministic: 1.5}\n",
            "run.deterministic must be true or false, found 1.5 in {path}",
        ),
        (
            "ray: {num_cpus: all}\n",
            "ray.num_cpus must be a whole number or null, found 'all' in {path}",
        ),
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
        ("trainer.adam_betas=[0.9", "is not valid YAML: expected ',' or ']'"),
        ("trainer.dtype=float16", "trainer.dtype must be one of auto, bfloat16, float32, found 'float16'"),
        ("models.judge.replica=2", "did you mean models.judge.replicas."),
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
        ("trainer.objective", {"mismatch_low": 1.0}, "mismatch_low must be in [0, 1)"),
        ("trainer.objective", {"mismatch_high": 0.5}, "mismatch_high must be greater than 1"),
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
    far = written(tmp_path, FAR)
    for mistake in ("api_key=hunter2", "base_url=https://me:hunter2@host/v1", "api_key_env=hunter2"):
        message = message_of(far, f"models.far.{mistake}")
        assert "hunter2" not in message
        assert "models.far" in message


def test_dump_is_read_back(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, ONE_MODEL), ["run.steps=3", "rewards.weights.reception=2"])
    text = dump_config(config)
    assert load_config(written(tmp_path, text)) == config
    assert re.findall(r"^(\w+):", text, re.MULTILINE) == [field.name for field in dataclasses.fields(Config)]


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


def test_importing_is_quick_and_light(tmp_path: Path) -> None:
    # Bytecode is cached first, as in an installation; pydantic is two thirds of the time.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    code = "import sys, time; t = time.process_time(); import perm_ray.config.load; "
    code += "print(time.process_time() - t, *{'torch', 'ray', 'vllm', 'mlflow', 'numpy'} & set(sys.modules))"

    def imported() -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout

    imported()
    seconds, *heavy = imported().split()
    assert heavy == []
    assert float(seconds) < 0.45


def test_what_was_removed_stays_removed_when_a_configuration_is_read_back(tmp_path: Path) -> None:
    moved = [f"judges.pools.{name}.model=far" for name in ("resonation", "expression", "reception")]
    removed = ["judges.pools.bystander=null", "models.judge=null"]
    config = load_config({"models": {"far": {"model": "m"}}}, [*moved, *removed])
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config
    assert list(config.judges.pools) == ["resonation", "expression", "reception"]


@pytest.mark.parametrize(
    ("flags", "dtype"), [("fpu avx avx2", "float32"), ("fpu avx2 avx512f", "bfloat16"), ("asimd", "bfloat16")]
)
def test_auto_is_the_data_type_that_the_machine_is_fast_in(
    flags: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_config._without_avx512.cache_clear()
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"flags\t: {flags}\n")
    try:
        assert (EngineConfig().dtype, TrainerConfig().dtype) == (dtype, dtype)
        assert EngineConfig(num_gpus=1.0).dtype == "bfloat16"
        assert EngineConfig(dtype="float16").dtype == "float16"
        assert TrainerConfig(zero_stage=0).dtype == "float32"
    finally:
        engine_config._without_avx512.cache_clear()
