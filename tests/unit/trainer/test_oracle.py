"""The objective and the advantages against TRL 1.16: its own code is run on the same numbers.

The loss is `GRPOTrainer._compute_loss` itself, on a trainer that has only what that method reads. The
importance ratios and the advantages are inline in a method that also generates; there the statements
are taken out of its source and run.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import nanstd

from perm_ray.config.training import ObjectiveConfig
from perm_ray.rewards.advantages import composed_advantages, reward_advantages
from perm_ray.trainer.batching import Totals
from perm_ray.trainer.objectives.policy import TokenBatch, policy_loss
from perm_ray.trainer.segments import Segments

LENGTHS = (9, 5, 7, 1, 8, 3)
LONGEST = 9
SEED = 11
CONSTANT_LENGTH = 16  # of dr_grpo: TRL's max_completion_length
LOSSES = ("dapo", "grpo", "dr_grpo", "gspo", "cispo")
KLS = ((0.0, False), (0.04, False), (0.04, True))
CLIPS = ((0.2, None), (0.28, None), (0.28, 1.5))
MODES = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
MISMATCH_BOUNDS = (0.8, 1.2)


def test_the_oracle_is_the_version_that_the_docstrings_name() -> None:
    assert trl.__version__.startswith("1.16.")


# ---- TRL's side ------------------------------------------------------------------------------------------


class Accelerator:
    """One process."""

    num_processes = 1
    sync_gradients = True
    device = torch.device("cpu")

    def gather(self, value: Any) -> Any:
        return value.reshape(-1)

    def reduce(self, value: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return value


def trainer(**attributes: Any) -> Any:
    """A GRPOTrainer that was never initialised."""
    made: Any = GRPOTrainer.__new__(GRPOTrainer)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def statements(marker: str) -> str:
    """The `if` of TRL's `_generate_and_score_completions` whose test and body contain the two parts of
    `marker` (with |), as source."""
    test, _, inside = marker.partition("|")
    source = textwrap.dedent(inspect.getsource(GRPOTrainer._generate_and_score_completions))
    branches = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.If)]
    found = [
        ast.unparse(node)
        for node in branches
        if test in ast.unparse(node.test) and inside in "".join(map(ast.unparse, node.body))
    ]
    return min(found, key=len)


RATIO_CODE = statements("vllm_importance_sampling_correction|per_token_logps_diff")
ADVANTAGE_CODE = statements("multi_objective_aggregation == 'sum_then_normalize'|mean_grouped_rewards")


def trl_ratios(old: Tensor, sampler: Tensor, mask: Tensor, mode: str) -> Tensor:
    names: dict[str, Any] = {
        "self": SimpleNamespace(
            use_vllm=True,
            vllm_importance_sampling_correction=True,
            vllm_importance_sampling_mode=mode,
            vllm_importance_sampling_clip_min=MISMATCH_BOUNDS[0],
            vllm_importance_sampling_clip_max=MISMATCH_BOUNDS[1],
        ),
        "old_per_token_logps": old,
        "sampling_per_token_logps": sampler,
        "completion_mask": mask,
        "tool_mask": None,
        "torch": torch,
        "math": math,
    }
    exec(RATIO_CODE, names)
    return names["vllm_importance_sampling_ratio"]


def trl_loss(logprobs: Tensor, entropy: Tensor, data: Data, config: ObjectiveConfig) -> Tensor:
    is_cispo, corrected = config.loss == "cispo", config.mismatch != "none"
    made = trainer(
        loss_type="grpo" if config.loss == "gspo" else config.loss,
        importance_sampling_level="sequence" if config.loss == "gspo" else "token",
        beta=config.kl_coef,
        epsilon_low=config.clip_low,
        epsilon_high=1 + config.clip_high if is_cispo else config.clip_high,
        args=SimpleNamespace(
            delta=config.dual_clip,
            use_bias_correction_kl=config.kl_ratio_weighted,
            steps_per_generation=1,
        ),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=corrected,
        vllm_importance_sampling_correction=corrected,
        max_completion_length=config.constant_length,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=config.entropy_coef > 0,
        entropy_coef=config.entropy_coef,
        use_adaptive_entropy=False,
        aux_loss_enabled=False,
        accelerator=Accelerator(),
        _metrics={"train": defaultdict(list)},
        model=SimpleNamespace(training=True),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, entropy, None),
    )
    rows = (len(LENGTHS), 1)
    inputs: dict[str, Tensor] = {
        "prompt_ids": torch.zeros(rows, dtype=torch.long),
        "prompt_mask": torch.ones(rows, dtype=torch.long),
        "completion_ids": torch.zeros(data.mask.shape, dtype=torch.long),
        "completion_mask": data.mask.long(),
        "advantages": data.advantages,
        "num_items_in_batch": data.mask.sum(),
        "old_per_token_logps": data.old,
        "ref_per_token_logps": data.reference,
    }
    if corrected:
        inputs["importance_sampling_ratio"] = trl_ratios(data.old, data.sampler, data.mask, config.mismatch)
    return made._compute_loss(None, inputs)


# ---- ours ------------------------------------------------------------------------------------------------


class Data:
    """Padded tensors [completions, LONGEST] of one random batch."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (len(LENGTHS), LONGEST)

        def noise(scale: float) -> Tensor:
            return scale * torch.randn(shape, generator=generator)

        self.logprobs = -4 * torch.rand(shape, generator=generator)
        self.old = self.logprobs + noise(0.25)
        self.reference = self.logprobs + noise(0.4)
        self.sampler = self.old + noise(0.1)
        self.entropy = 3 * torch.rand(shape, generator=generator)
        self.advantages = torch.randn(len(LENGTHS), generator=generator)
        self.mask = torch.arange(LONGEST)[None] < torch.tensor(LENGTHS)[:, None]


def our_loss(logprobs: Tensor, entropy: Tensor, data: Data, config: ObjectiveConfig) -> Tensor:
    """Packed, and in two micro-batches, as on two ranks of unequal load."""
    totals = Totals(sum(LENGTHS), len(LENGTHS))
    parts = [
        our_part(slice(first, last), logprobs, entropy, data, config, totals)
        for first, last in ((0, 2), (2, len(LENGTHS)))
    ]
    return torch.stack(parts).sum()


def our_part(
    rows: slice, logprobs: Tensor, entropy: Tensor, data: Data, config: ObjectiveConfig, totals: Totals
) -> Tensor:
    mask = data.mask[rows]
    tokens = TokenBatch(
        logprobs=logprobs[rows][mask],
        old_logprobs=data.old[rows][mask],
        sampler_logprobs=data.sampler[rows][mask],
        reference_logprobs=data.reference[rows][mask] if config.kl_coef > 0 else None,
        entropy=entropy[rows][mask],
        advantages=data.advantages[rows, None].expand_as(mask)[mask],
        segments=Segments.of(LENGTHS[rows]),
    )
    loss, sums = policy_loss(tokens, totals, config)
    assert sums.loss == pytest.approx(float(loss.detach()), abs=1e-6)
    return loss


CASES = [
    ObjectiveConfig(
        loss=loss,
        clip_high=4.0 * clip_high if loss == "cispo" else clip_high,
        dual_clip=dual_clip,
        kl_coef=kl_coef,
        kl_ratio_weighted=weighted,
        constant_length=CONSTANT_LENGTH,
        mismatch=mode,
        mismatch_low=MISMATCH_BOUNDS[0],
        mismatch_high=MISMATCH_BOUNDS[1],
        entropy_coef=entropy_coef,
    )
    for loss, (kl_coef, weighted), (clip_high, dual_clip), mode, entropy_coef in itertools.product(
        LOSSES, KLS, CLIPS, MODES, (0.0, 0.01)
    )
    if not (loss == "cispo" and dual_clip)
]


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_those_of_trl(loss: str) -> None:
    cases = [config for config in CASES if config.loss == loss]
    assert len(cases) == (60 if loss == "cispo" else 90)
    data = Data(SEED)
    for config in cases:
        found = [values(our_loss, data, config), values(trl_loss, data, config)]
        for ours, theirs in zip(*found, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6), config


def values(function: Any, data: Data, config: ObjectiveConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its gradients by log-probs and by entropy."""
    logprobs = data.logprobs.clone().requires_grad_()
    entropy = data.entropy.clone().requires_grad_()
    loss = function(logprobs, entropy, data, config)
    gradients = torch.autograd.grad(loss, (logprobs, entropy), allow_unused=True, materialize_grads=True)
    return loss.detach(), gradients[0], gradients[1]


def test_the_cases_reach_what_they_are_there_for() -> None:
    """Ratios beyond every bound, in both directions."""
    data = Data(SEED)
    ratio, gap = (data.logprobs - data.old)[data.mask].exp(), (data.old - data.sampler)[data.mask].exp()
    sequence_gap = ((data.old - data.sampler) * data.mask).sum(1).exp()
    signs = data.advantages[:, None].expand_as(data.mask)[data.mask]
    assert ((ratio > 1.5) & (signs < 0)).any()
    assert ((ratio < 0.8) & (signs < 0)).any()
    assert ((ratio > 1.28) & (signs > 0)).any()
    for ratios in (gap, sequence_gap):
        assert (ratios < MISMATCH_BOUNDS[0]).any()
        assert (ratios > MISMATCH_BOUNDS[1]).any()
        assert ((ratios > MISMATCH_BOUNDS[0]) & (ratios < MISMATCH_BOUNDS[1])).any()


# ---- advantages ------------------------------------------------------------------------------------------

WEIGHTS = {"resonation": 1.0, "bystander": 0.5, "length": 2.0}
NAN = float("nan")
FLOAT32 = 1e-6  # in which TRL computes its deviations
# Three groups of four: the second has equal lengths, the third a masked completion.
PARTS = (
    ((0.2, 0.31, 0.0), (0.4, 0.12, -0.1), (0.8, 0.9, -0.2), (1.0, 0.55, 0.0)),
    ((0.6, 0.5, -0.1), (0.2, 0.75, -0.1), (0.9, 0.5, -0.1), (0.3, 0.1, -0.1)),
    ((0.2, 0.1, -0.3), (NAN, NAN, NAN), (0.4, 0.3, -0.2), (0.8, 0.2, -0.4)),
)


def trl_advantages(parts: Tensor, composition: str, scaling: str = "group") -> list[float]:
    names: dict[str, Any] = {
        "self": SimpleNamespace(
            multi_objective_aggregation=composition,
            scale_rewards=scaling,
            reward_weights=torch.tensor(list(WEIGHTS.values()), dtype=parts.dtype),
            reward_funcs=list(WEIGHTS),
        ),
        "rewards_per_func": parts,
        "num_generations": 4,
        "device": parts.device,
        "unscorable_mask": torch.isnan(parts).all(1),
        "torch": torch,
        "nanstd": nanstd,
    }
    exec(ADVANTAGE_CODE, names)
    return torch.nan_to_num(names["advantages"], nan=0.0).tolist()


def flat(advantages: Sequence[Sequence[float]]) -> list[float]:
    return [advantage for group in advantages for advantage in group]


@pytest.mark.parametrize("scaling", ["group", "batch", "none"])
def test_advantages_of_sums_are_those_of_trl(scaling: str) -> None:
    parts = torch.tensor(PARTS, dtype=torch.float64).reshape(12, 3)
    sums = (parts * torch.tensor(list(WEIGHTS.values()))).sum(1).tolist()
    groups = [[None if math.isnan(r) else r for r in sums[i : i + 4]] for i in (0, 4, 8)]
    expected = trl_advantages(parts, "sum_then_normalize", scaling)
    assert flat(reward_advantages(groups, scaling)) == pytest.approx(expected, abs=FLOAT32)


def test_advantages_of_parts_are_those_of_trl() -> None:
    groups = [
        [None if math.isnan(row[0]) else dict(zip(WEIGHTS, row, strict=True)) for row in group]
        for group in PARTS
    ]
    expected = trl_advantages(torch.tensor(PARTS, dtype=torch.float64).reshape(12, 3), "normalize_then_sum")
    assert flat(composed_advantages(groups, WEIGHTS)) == pytest.approx(expected, abs=FLOAT32)
