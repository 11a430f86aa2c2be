"""A model's shape: all that memory and time depend on. From a folder's config.json, or the table below.

Nothing is downloaded: `perm-ray plan` is asked before a machine with the model is there. A dense decoder
with RMS norms and a gated MLP (Llama, Mistral, Qwen2, Qwen2.5, Qwen3, SmolLM2) is what is understood.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perm_ray.config.engines import BUILTIN_MODEL
from perm_ray.errors import ModelError
from perm_ray.models.resolve import BUILTIN_ADAPTERS


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
        """Of the embedding alone; a head that is not tied has as many again."""
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
        """All of them, a tied weight once."""
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return embeddings + self.layers * self.layer_parameters + self.hidden

    @property
    def largest_tensor(self) -> int:
        """Elements of the largest weight."""
        return max(self.embedding_parameters, *(wide * high for wide, high in self.matrices.values()))

    def adapter_parameters(self, rank: int, targets: Sequence[str]) -> int:
        """Of a LoRA adapter (arXiv 2106.09685): A [rank, in] and B [out, rank] for each target and layer."""
        unknown = [target for target in targets if target not in self.matrices]
        if rank and unknown:
            raise ModelError(
                f"trainer.lora.targets must be among {', '.join(self.matrices)} for a plan, found "
                f"{', '.join(unknown)}: leave it out or use names as these."
            )
        return self.layers * rank * sum(sum(self.matrices[target]) for target in targets) if rank else 0


def _qwen25(layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int) -> ModelShape:
    small = hidden <= 2048  # 3B and below: tied, and a vocabulary that is not padded as far
    return ModelShape(
        layers,
        hidden,
        intermediate,
        heads,
        kv_heads,
        hidden // heads,
        vocabulary=151936 if small else 152064,
        tied=small,
        qkv_bias=True,
    )


def _qwen3(
    layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int = 8, tied: bool = False
) -> ModelShape:
    return ModelShape(layers, hidden, intermediate, heads, kv_heads, 128, 151936, tied=tied, qk_norm=True)


_SMOLLM2 = ModelShape(30, 576, 1536, 9, 3, 64, 49152, tied=True)  # 135M

# From each model's public config.json; behind it the parameters that its card gives.
PUBLISHED: Mapping[str, ModelShape] = {
    BUILTIN_MODEL: _SMOLLM2,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2,
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen25(24, 896, 4864, 14, 2),  # 0.49B, 0.36B without embeddings
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen25(28, 1536, 8960, 12, 2),  # 1.54B, 1.31B
    "Qwen/Qwen2.5-3B-Instruct": _qwen25(36, 2048, 11008, 16, 2),  # 3.09B, 2.77B
    "Qwen/Qwen2.5-7B-Instruct": _qwen25(28, 3584, 18944, 28, 4),  # 7.61B, 6.53B
    "Qwen/Qwen2.5-14B-Instruct": _qwen25(48, 5120, 13824, 40, 8),  # 14.7B, 13.1B
    "Qwen/Qwen2.5-32B-Instruct": _qwen25(64, 5120, 27648, 40, 8),  # 32.5B, 31.0B
    "Qwen/Qwen2.5-72B-Instruct": _qwen25(80, 8192, 29568, 64, 8),  # 72.7B, 70.0B
    "Qwen/Qwen3-0.6B": _qwen3(28, 1024, 3072, 16, tied=True),  # 0.6B, 0.44B
    "Qwen/Qwen3-4B": _qwen3(36, 2560, 9728, 32, tied=True),  # 4.0B, 3.6B
    "Qwen/Qwen3-8B": _qwen3(36, 4096, 12288, 32),  # 8.2B, 6.95B
    "Qwen/Qwen3-14B": _qwen3(40, 5120, 17408, 40),  # 14.8B, 13.2B
    "Qwen/Qwen3-32B": _qwen3(64, 5120, 25600, 64),  # 32.8B, 31.2B
    "meta-llama/Llama-3.2-1B-Instruct": ModelShape(16, 2048, 8192, 32, 8, 64, 128256, tied=True),  # 1.23B
    "meta-llama/Llama-3.2-3B-Instruct": ModelShape(28, 3072, 8192, 24, 8, 128, 128256, tied=True),  # 3.21B
    "meta-llama/Llama-3.1-8B-Instruct": ModelShape(32, 4096, 14336, 32, 8, 128, 128256),  # 8.03B
    "meta-llama/Llama-3.1-70B-Instruct": ModelShape(80, 8192, 28672, 64, 8, 128, 128256),  # 70.6B
}


def model_shape(name: str) -> ModelShape:
    """The shape of a built-in model, a folder's, or a hub id's. Raises `ModelError`; downloads nothing."""
    name = BUILTIN_MODEL if name in BUILTIN_ADAPTERS else name
    if name in PUBLISHED:
        return PUBLISHED[name]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return read_shape(folder / "config.json")
    if not name.startswith(("builtin:", ".", "/", "~")) and name.count("/") == 1:
        cached = _cached_config(name)
        if cached is not None:
            return read_shape(cached)
    near = difflib.get_close_matches(name, PUBLISHED, n=1, cutoff=0.8)
    meant = f", or did you mean {near[0]}" if near else ""
    raise ModelError(
        f"The shape of {name!r} is not known, and a plan downloads nothing: give the folder that holds the "
        f"model's config.json{meant}."
    )


def read_shape(file: Path) -> ModelShape:
    """The shape that a config.json tells. Raises `ModelError`."""
    whole = _read(file)
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
    """The config.json of a hub id that was downloaded to this machine before."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
