"""Tell a model's shape, all that memory depends on: from a folder's config.json, or of public models from
`published.json`.

Nothing is downloaded: `perm-ray plan` is asked before a machine with the model is there. A dense decoder
with RMS norms and a gated MLP (Llama, Mistral, Qwen2, Qwen2.5, Qwen3, SmolLM2) is what is understood.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perm_ray.config.engines import BUILTIN_MODEL
from perm_ray.errors import ModelError
from perm_ray.models.resolve import BUILTIN_ADAPTERS

_PUBLISHED = Path(__file__).parent / "published.json"
_BUILTIN_IS = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder. Layers, heads and vocabulary are counts; the other sizes are elements."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False  # the head's weight is the embedding's
    qkv_bias: bool = False
    qk_norm: bool = False

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(in, out) of each linear layer of a decoder layer, by the name that LoRA targets have."""
        return {
            "q_proj": (self.hidden, self.query_width),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (self.query_width, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def embedding_parameters(self) -> int:
        """Return the parameters of the embedding alone; a head that is not tied has as many again."""
        return self.vocabulary * self.hidden

    @property
    def layer_parameters(self) -> int:
        """Matrices, two norms, and what there is of biases and of norms of queries and keys."""
        matrices = sum(wide * high for wide, high in self.matrices.values())
        biases = self.query_width + 2 * self.kv_width if self.qkv_bias else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return matrices + biases + norms

    @property
    def parameters(self) -> int:
        """Return the number of all parameters; a tied weight counts once."""
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer_parameters + self.hidden

    @property
    def largest_tensor(self) -> int:
        """Return the elements of the largest weight."""
        return max(self.embedding_parameters, *(wide * high for wide, high in self.matrices.values()))

    def adapter_parameters(self, rank: int, targets: Sequence[str]) -> int:
        """Return the parameters of a LoRA adapter (arXiv 2106.09685): A [rank, in] and B [out, rank] for each
        target and layer."""
        unknown = [target for target in targets if target not in self.matrices]
        if rank and unknown:
            raise ModelError(
                f"trainer.lora.targets must be among {', '.join(self.matrices)} for a plan, found "
                f"{', '.join(unknown)}: leave it out or use names as these."
            )
        return self.layers * rank * sum(sum(self.matrices[target]) for target in targets) if rank else 0


def model_shape(name: str) -> ModelShape:
    """Return the shape of a built-in model, a folder's, or a hub id's. Raises `ModelError`; downloads
    nothing."""
    published = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
    name = _BUILTIN_IS if name in (BUILTIN_MODEL, *BUILTIN_ADAPTERS) else name
    if name in published:
        return _shape(published[name], _PUBLISHED)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return read_shape(folder / "config.json")
    if not name.startswith(("builtin:", ".", "/", "~")) and name.count("/") == 1:
        cached = _cached_config(name)
        if cached is not None:
            return read_shape(cached)
    near = difflib.get_close_matches(name, published, n=1, cutoff=0.8)
    meant = f", or did you mean {near[0]}" if near else ""
    raise ModelError(
        f"The shape of {name!r} is not known, and a plan downloads nothing: give the folder that holds the "
        f"model's config.json{meant}."
    )


def read_shape(file: Path) -> ModelShape:
    """Return the shape that a config.json tells. Raises `ModelError`."""
    return _shape(_read(file), file)


def _shape(whole: dict[str, Any], file: Path) -> ModelShape:
    config = whole.get("text_config", whole)
    if any(config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise ModelError(
            f"{file} is a mixture of experts, and a plan knows dense models only: give a dense model."
        )
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        kind = config["model_type"]
        return ModelShape(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            intermediate=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocabulary=config["vocab_size"],
            tied=bool(whole.get("tie_word_embeddings", config.get("tie_word_embeddings"))),
            qkv_bias=bool(config.get("attention_bias", kind == "qwen2")),  # Qwen2 has it and does not say so
            qk_norm=kind == "qwen3",
        )
    except KeyError as error:
        raise ModelError(
            f"{file} must have the key {error}, as a decoder's has: give a dense model."
        ) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON ({error}): give a complete model folder.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} must be a JSON object: give a complete model folder.")
    return config


def _cached_config(name: str) -> Path | None:
    """Return the config.json of a hub id that was downloaded to this machine before."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
