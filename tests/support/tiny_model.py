"""A tiny random Llama with a byte-level tokenizer: made in a second, without a network.

It says nothing sensible, but everything that loads a real model loads it: transformers, DeepSpeed
and vLLM. Vocabulary 512: 256 bytes, 252 pairs of common letters and 4 special tokens, so that every
id the model can sample decodes, and each digit is one token.
"""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
VOCABULARY = 512
MAX_LENGTH = 8192
_LETTERS = "etaoinshrdlcumwf"
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_model(path: Path, seed: int = 0) -> Path:
    """Write the model and its tokenizer to the folder `path`, unless it exists, and return `path`.

    Weights are bfloat16, so that bfloat16 and float32 runs start from the same values.
    """
    if path.exists():
        return path
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
    special: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=0.1,  # large enough that tokens differ in probability
        tie_word_embeddings=True,
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).bfloat16()
    model.generation_config = GenerationConfig(**special)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.rename(aside, path)
    return path


def _tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = VOCABULARY - len(alphabet) - len(SPECIAL_TOKENS)
    merges = list(itertools.islice(itertools.product(_LETTERS, _LETTERS), room))
    vocabulary = {token: i for i, token in enumerate([*alphabet, *map("".join, merges)])}
    byte_level = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    end_of_text, _, end_of_turn, padding = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level,
        bos_token=end_of_text,
        eos_token=end_of_turn,
        pad_token=padding,
        chat_template=_CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
