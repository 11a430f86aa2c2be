"""A model's name is resolved to a folder, or refused with what to do. No network: `HF_HUB_OFFLINE` is set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perm_ray.config.engines import BUILTIN_MODEL
from perm_ray.errors import ModelError
from perm_ray.models.resolve import cache_dir, check_context, resolve_model
from tests.support.fakes import write_fake_model


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, so that its environment is not ours."""
    return subprocess.run(
        [sys.executable, "-c", f"from perm_ray.models.resolve import cache_dir, resolve_model\n{code}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---- folders --------------------------------------------------------------------------------


def test_a_model_folder_is_given_back_as_an_absolute_path(tmp_path: Path) -> None:
    folder = write_fake_model(tmp_path / "model")
    assert resolve_model(str(folder)) == folder
    assert resolve_model(os.path.relpath(folder)) == folder


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_part_is_refused_by_its_name(tmp_path: Path, missing: str) -> None:
    folder = write_fake_model(tmp_path / "model")
    (folder / missing).unlink()
    with pytest.raises(ModelError) as caught:
        resolve_model(str(folder))
    named = missing.replace("model.safetensors", "*.safetensors")
    assert f"{folder} is not a Hugging Face model folder: {named} not found in it" in str(caught.value)


def test_an_empty_folder_lacks_everything_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json, tokenizer\.json, \*\.safetensors not found"):
        resolve_model(str(tmp_path))


def test_every_shard_of_an_index_must_be_there(tmp_path: Path) -> None:
    folder = write_fake_model(tmp_path / "model")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-2\.safetensors not found in it"):
        resolve_model(str(folder))


def test_a_hub_model_that_is_whole_in_the_cache_is_taken_as_it_is(tmp_path: Path) -> None:
    """The hub would be asked for a newer revision, and is out of reach: `HF_HUB_OFFLINE` is not set there."""
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    folder = write_fake_model(repository / "snapshots" / ("0" * 40))
    code = "print(resolve_model('org/name'))"
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path / "hub")}
    nowhere["HF_HUB_OFFLINE"] = "0"
    done = python(code, **nowhere)
    assert done.stdout.strip() == str(folder), done.stderr
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json not found" in python(code, **nowhere).stderr


def test_a_file_is_no_model_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="not a Hugging Face model folder"):
        resolve_model(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize("name", ["/no/such", "./no-such", "../no/such", "~/no-such", "no-such", "a/b/c"])
def test_what_reads_as_a_folder_and_is_none_is_refused_without_asking_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match=r"does not exist: give a folder, a hub id .* or 'builtin:"):
        resolve_model(name)


# ---- the hub --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nobody/nothing", "no/such one", "org/.."])
def test_a_hub_id_that_cannot_be_fetched_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="is no folder here and could not be fetched from the hub") as caught:
        resolve_model(name)
    assert repr(name) in str(caught.value)


# ---- the built-in model ---------------------------------------------------------------------


def test_a_built_in_model_nobody_knows_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ModelError,
        match=r"'builtin:gpt9': there are .*, builtin:judge, builtin:supporter",
    ):
        resolve_model("builtin:gpt9")


def test_the_cache_is_where_the_environment_says(tmp_path: Path) -> None:
    write_fake_model(tmp_path / "models" / BUILTIN_MODEL.removeprefix("builtin:"))
    done = python(f"print(cache_dir(), resolve_model({BUILTIN_MODEL!r}))", PERM_RAY_CACHE=str(tmp_path))
    assert done.stdout.split() == [str(tmp_path), f"{tmp_path}/models/smollm2-135m-instruct"], done.stderr
    assert python("print(cache_dir())", PERM_RAY_CACHE="", HOME="/h").stdout == "/h/.cache/perm_ray\n"


def test_a_conversion_that_fails_is_a_model_error(tmp_path: Path) -> None:
    """The error of the process that converts is on the terminal, above the sentence."""
    (tmp_path / "torch.py").write_text("raise OSError('no torch in this test')\n")
    code = (
        "from perm_ray.errors import ModelError\n"
        f"try: resolve_model({BUILTIN_MODEL!r})\n"
        "except ModelError as error: print(error)"
    )
    done = python(code, PERM_RAY_CACHE=str(tmp_path / "cache"), PYTHONPATH=str(tmp_path))
    assert "could not be converted" in done.stdout, done.stderr
    assert "no torch in this test" in done.stderr
    assert not (tmp_path / "cache" / "models" / "smollm2-135m-instruct").exists()


def test_asking_where_a_model_is_loads_nothing_heavy() -> None:
    done = python("import sys; print({'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys())")
    assert done.stdout == "set()\n"


def test_the_cache_has_a_place_in_the_home_directory_otherwise() -> None:
    assert cache_dir().is_absolute()


# ---- the context ----------------------------------------------------------------------------


def config_in(folder: Path, content: object) -> Path:
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "config", [{"max_position_embeddings": 2048}, {"text_config": {"max_position_embeddings": 2048}}]
)
def test_an_engine_may_be_as_long_as_its_model_and_no_longer(tmp_path: Path, config: object) -> None:
    folder = config_in(tmp_path, config)
    check_context(folder, 2048, "rollout.engine.max_model_len")
    with pytest.raises(ModelError) as caught:
        check_context(folder, 2049, "rollout.engine.max_model_len")
    assert str(caught.value) == (
        f"rollout.engine.max_model_len must be at most 2048, the context of {tmp_path.name}, found 2049."
    )


def test_a_model_that_says_nothing_of_its_context_is_taken_at_its_word(tmp_path: Path) -> None:
    check_context(config_in(tmp_path, {}), 10**6, "rollout.engine.max_model_len")


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"text_config": 7}'])
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ModelError, match=r"config\.json must be a JSON object"):
        check_context(config_in(tmp_path, content), 1, "rollout.engine.max_model_len")
