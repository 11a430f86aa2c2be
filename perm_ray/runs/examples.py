"""Turn demonstrations and ratings into sequences to learn from, rendered as `train` renders its prompts.

A *unit* is a list of sequences that begin alike: the ratings of one scenario's answers from one perspective,
which share rubric and scenario, or one demonstration. The trainer computes the common beginning once.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from perm_ray.config.training import FinetuneConfig
from perm_ray.data.documents import Document
from perm_ray.data.prompts import build_prompts
from perm_ray.errors import ConfigError, DataError
from perm_ray.models.chat import ChatRenderer
from perm_ray.trainer.batching import TrainSequence
from perm_ray.types import JudgeItem, Scenario

Unit: TypeAlias = tuple[TrainSequence, ...]
_MAX_SHOWN = 20


# ---- demonstrations -----------------------------------------------------------------------------


def demonstration_units(
    items: Sequence[JudgeItem],
    template: Document,
    prefix: str,
    renderer: ChatRenderer,
    max_prompt_tokens: int,
    max_tokens: int,
) -> list[Unit]:
    """Render each demonstration: the prompt of `train`, then the answer, of which every token is learned.

    Args:
        items: Scenarios with both sections of a good answer.
        template: The policy's prompt template.
        prefix: The opening of the answer that is given to the policy (`prompt.prefix`), not learned.
        renderer: The policy's chat template and tokenizer.
        max_prompt_tokens: The longest prompt (`prompt.max_tokens`).
        max_tokens: The longest prompt and answer together.

    Raises:
        ConfigError: `prompt.prefix` is no beginning of an answer.
        DataError: Rows are too long; one error names them.
    """
    prompts = build_prompts([i.scenario for i in items], template, prefix, renderer, max_prompt_tokens)
    units: list[Unit] = []
    for item, prompt in zip(items, prompts, strict=True):
        sections = item.sections
        answer = f"# Analysis\n{sections.analysis}\n\n# Response\n{sections.response}"
        if not answer.startswith(prefix):
            raise ConfigError(
                f"prompt.prefix must be a beginning of the demonstrations, '# Analysis\\n' or nothing, found "
                f"{prefix!r}: change it for this run and for the training after it."
            )
        text = renderer.without_special_tokens(answer.removeprefix(prefix))
        answer_ids = (*renderer.encode(text), renderer.end_of_turn)
        units.append((sequence_of(prompt.token_ids, answer_ids, range(len(answer_ids))),))
    check_lengths(units, [item.item_id for item in items], max_tokens)
    return units


# ---- both ---------------------------------------------------------------------------------------


def sequence_of(prompt: Sequence[int], answer: Sequence[int], places: Sequence[int]) -> TrainSequence:
    """Return a sequence of which the answer's tokens at `places` are trained."""
    chosen = set(places)
    trained = (False,) * len(prompt) + tuple(place in chosen for place in range(len(answer)))
    return TrainSequence((*prompt, *answer), trained, (0.0,) * len(chosen), 0.0)


def sharing(sequences: Sequence[TrainSequence]) -> Unit:
    """Mark the common beginning of sequences as their prompt."""
    columns = zip(*(sequence.token_ids for sequence in sequences), strict=False)
    alike = [len(set(column)) == 1 for column in columns]
    common = alike.index(False) if False in alike else len(alike)
    shared = min(common, *(sequence.trained.index(True) for sequence in sequences))
    return tuple(replace(sequence, shared_prompt=shared) for sequence in sequences)


def check_lengths(units: Sequence[Unit], names: Sequence[str], max_tokens: int) -> None:
    """Refuse examples of more than `max_tokens`: `DataError` names the first rows."""
    lengths = {name: max(map(len, unit)) for name, unit in zip(names, units, strict=True)}
    long = [f"{name} has {length}" for name, length in lengths.items() if length > max_tokens]
    if long:
        more = [f"and {len(long) - _MAX_SHOWN} more"] if len(long) > _MAX_SHOWN else []
        raise DataError(
            f"An example may have {max_tokens} tokens (finetune.max_tokens), but "
            f"{', '.join(long[:_MAX_SHOWN] + more)}: raise it or shorten the rows."
        )


def batches_of(epochs: Sequence[Sequence[Unit]], batch_size: int, seed: int) -> list[list[TrainSequence]]:
    """Return every update's sequences: units in a new order each epoch, as many as make `batch_size`."""
    batches: list[list[TrainSequence]] = []
    for epoch, units in enumerate(epochs):
        order = list(units)
        random.Random(f"{seed}/{epoch}").shuffle(order)
        batch: list[TrainSequence] = []
        for unit in order:
            batch += unit
            if len(batch) >= batch_size:
                batches.append(batch)
                batch = []
        if batch:
            batches.append(batch)
    return batches


def learned_from(scenario_id: str, heldout: Collection[str], config: FinetuneConfig) -> bool:
    """Return whether a scenario is learned from: it is not held out, and in the half that is asked for."""
    if scenario_id in heldout:
        return False
    first = int(hashlib.sha256(scenario_id.encode()).hexdigest(), 16) % 2 == 0
    return config.scenarios == "all" or first == (config.scenarios == "first_half")


def heldout_scenarios(
    scenarios: Sequence[Scenario], splits: Mapping[str, str], share: float, seed: int
) -> set[str]:
    """Return the ids of the scenarios that only measure.

    Args:
        scenarios: Of all rows.
        splits: `train` or `heldout` by scenario id, where the data say it; then they decide alone.
        share: Of the scenarios otherwise, chosen by a hash of the content and the seed.

    Raises:
        DataError: There is only one scenario, so that nothing could be held out.
    """
    ids = list(dict.fromkeys(scenario.scenario_id for scenario in scenarios))
    if len(ids) < 2:
        raise DataError(
            "The data have one scenario only, so that nothing can be held out to measure: add scenarios."
        )
    if splits:
        return {scenario for scenario in ids if splits.get(scenario) == "heldout"}
    ranked = sorted(ids, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).hexdigest())
    return set(ranked[: max(1, round(share * len(ids)))] if share else [])
