"""The policy as the trainer runs it: packed sequences in, log-probabilities of trained tokens out.

Sequences of a micro-batch lie one after the other in a single row, without padding, and continuations of one
prompt after one copy of it. Attention is one causal call per sequence; or one per shared prompt, and one per
continuation, which reads the prompt and itself. This is where packing goes wrong silently in other code (with
a key-value cache or an all-ones mask the sequences attend to each other), so everything here that could let
it happen raises instead, and `check_packing` compares with the stock model once at the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from perm_ray.errors import ModelError
from perm_ray.trainer.batching import STAND_IN, MicroBatch, TrainSequence
from perm_ray.trainer.head import score
from perm_ray.trainer.segments import Segments

ATTENTION = "packed_sdpa"


@dataclass(frozen=True, slots=True)
class PackedPrompt:
    """A prompt of `prompt` tokens, then its continuations of so many tokens each, which never see another."""

    prompt: int
    continuations: tuple[int, ...]

    @property
    def pieces(self) -> tuple[int, ...]:
        """Lengths that attention takes one by one: a prompt and its only continuation are one."""
        if len(self.continuations) == 1:
            return (self.prompt + self.continuations[0],)
        return (self.prompt, *self.continuations)

    @property
    def longest(self) -> int:
        """Return the tokens of the longest sequence."""
        return self.prompt + max(self.continuations)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A micro-batch in one row of N tokens, C of which are trained.

    `layout` divides the row; `predictors` [C] are the places whose output predicts `targets` [C], which
    `segments` divides into sequences; `advantages` and `sampler_logprobs` are [C], float32. Logits are
    divided by `temperature`.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: tuple[PackedPrompt, ...]
    predictors: Tensor
    targets: Tensor
    segments: Segments
    advantages: Tensor
    sampler_logprobs: Tensor
    temperature: float


def pack(micro_batch: MicroBatch, device: torch.device, temperature: float = 1.0) -> PackedBatch:
    """Lay sequences end to end, a shared prompt once; positions are those within each sequence."""
    units = micro_batch or ((STAND_IN,),)
    sequences = [sequence for unit in units for sequence in unit]
    ids: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    for unit in units:
        prompt = unit[0].prompt_length
        ids += unit[0].token_ids[:prompt]
        positions += range(prompt)
        last_of_prompt = len(ids) - 1
        for sequence in unit:
            start = len(ids) - prompt  # where the sequence's first token would be, had it a prompt of its own
            places = [place for place, trained in enumerate(sequence.trained) if trained]
            predictors += [last_of_prompt if place == prompt else start + place - 1 for place in places]
            ids += sequence.token_ids[prompt:]
            positions += range(prompt, len(sequence))

    def per_token(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    targets = [
        token
        for sequence in sequences
        for token, trained in zip(sequence.token_ids, sequence.trained, strict=True)
        if trained
    ]
    return PackedBatch(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        layout=tuple(
            PackedPrompt(unit[0].prompt_length, tuple(sequence.continuation_length for sequence in unit))
            for unit in units
        ),
        predictors=torch.tensor(predictors, device=device),
        targets=torch.tensor(targets, device=device),
        segments=Segments.of([sequence.num_trained for sequence in sequences], device),
        advantages=per_token([s.advantage for s in sequences for _ in range(s.num_trained)]),
        sampler_logprobs=per_token([value for s in sequences for value in s.logprobs]),
        temperature=temperature,
    )


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,  # noqa: ARG001  never used: sampling had none, and ratios compare with it
    scaling: float | None = None,
    layout: Sequence[PackedPrompt] | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence: query [1, heads, N, head_dim] -> [1, N, heads, head_dim]."""
    layer = type(module).__name__
    if layout is None or attention_mask is not None or query.shape[0] != 1:
        raise ModelError(
            f"{layer} was called without sequence boundaries, with a mask or with several rows: packed "
            "sequences would read each other. This model cannot be trained packed."
        )
    lengths = [length for prompt in layout for length in prompt.pieces]
    if sum(lengths) != query.shape[2] or key.shape[2] != query.shape[2]:
        raise ModelError(
            f"{layer} got {query.shape[2]} queries and {key.shape[2]} keys for sequences of {sum(lengths)} "
            "tokens: a key-value cache must not be used in training."
        )
    unknown = [name for name in ("softcap", "s_aux") if others.get(name) is not None]
    longest = max(prompt.longest for prompt in layout)
    if unknown or (sliding_window is not None and longest > sliding_window):
        found = unknown or [f"sliding_window={sliding_window}"]
        raise ModelError(f"{layer} needs {', '.join(found)}, which packed attention does not have.")
    # split, not slicing: the backward pass of slicing fills a zero tensor per slice
    pieces = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    outputs = [output for prompt in layout for output in _attend(prompt, pieces, scaling)]
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


def _attend(
    prompt: PackedPrompt, pieces: Iterator[tuple[Tensor, Tensor, Tensor]], scaling: float | None
) -> Iterator[Tensor]:
    """Yield the output of each of the prompt's pieces, whose queries, keys and values come next."""
    query, prompt_key, prompt_value = next(pieces)
    yield functional.scaled_dot_product_attention(
        query, prompt_key, prompt_value, is_causal=True, scale=scaling, enable_gqa=True
    )
    for _ in prompt.pieces[1:]:
        query, key, value = next(pieces)
        key, value = torch.cat((prompt_key, key), 2), torch.cat((prompt_value, value), 2)
        sees: Any = causal_lower_right(query.shape[2], key.shape[2])  # all of the prompt, itself up to here
        yield functional.scaled_dot_product_attention(
            query, key, value, attn_mask=sees, scale=scaling, enable_gqa=True
        )


def _no_mask(*_: Any, **__: Any) -> None:
    return None


AttentionInterface.register(ATTENTION, packed_sdpa)
AttentionMaskInterface.register(ATTENTION, _no_mask)


def load_policy(model_dir: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the causal language model in `model_dir`, its forward replaced by `completion_logprobs`,
    its head's by `score`.

    Replaced, not wrapped: parameter names stay those of the checkpoint, and ZeRO-3 gathers the
    head's weight only inside the engine's forward.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=dtype, attn_implementation=ATTENTION, trust_remote_code=False, use_safetensors=True
    )
    model.forward = MethodType(completion_logprobs, model)
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"The policy needs a linear layer as its head, and {type(model).__name__} has a "
            f"{type(head).__name__}: it cannot be trained here."
        )
    head.forward = MethodType(score, head)
    return model


def completion_logprobs(
    self: PreTrainedModel, batch: PackedBatch, with_entropy: bool = False, entropy_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute each trained token's log-probability [C], with gradient, and the entropy there [C].

    Both are in nats, float32, and of the distribution at the batch's temperature; the entropy is zeros unless
    asked for, and has a gradient only if that is asked for too. Only predictors reach the head: logits of
    prompts would be most of the memory and are never used.
    """
    output = self.base_model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        use_cache=False,
        layout=batch.layout,
    )
    hidden = output.last_hidden_state[0].index_select(0, batch.predictors)
    head: Any = self.get_output_embeddings()
    return head(hidden, batch.targets, with_entropy, entropy_gradient, batch.temperature)


@torch.no_grad()
def check_packing(model: PreTrainedModel, tolerance: float = 0.25) -> None:
    """Raise `ModelError` unless packed log-probs agree with the stock model's, one sequence at a time.

    Two of the sequences share a prompt.
    Catches sequences that read each other and heads that do more than multiply (soft-capping,
    scaling). In bfloat16 the mean difference is below 0.06 nats when all is well, 0.9 when
    sequences mix.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (3, 24), generator=generator)
    ids[1, :8] = ids[0, :8]
    one, two, other = [
        TrainSequence(tuple(row), (False,) * 8 + (True,) * 16, (0.0,) * 16, 0.0) for row in ids.tolist()
    ]
    packed, _ = completion_logprobs(model, pack(((one, two), (other,)), model.device))
    model.set_attn_implementation("sdpa")
    alone = [_stock_logprobs(model, row.to(model.device))[7:] for row in ids]
    model.set_attn_implementation(ATTENTION)
    difference = float((packed - torch.cat(alone)).abs().mean())
    if not difference < tolerance:
        raise ModelError(
            f"{type(model).__name__} gives other log-probabilities packed than alone (mean difference "
            f"{difference:.2f} nats, at most {tolerance} expected): it cannot be trained packed."
        )


def _stock_logprobs(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Log-probabilities of ids[1:] by the model's own forward, which `load_policy` replaced."""
    logits = type(model).forward(model, input_ids=ids[None], use_cache=False).logits[0]
    return -functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="none")
