"""Restoring a checkpoint: what DeepSpeed's universal checkpoint leaves on the wrong device or shared."""

from __future__ import annotations

import torch

from perm_ray.trainer.state import _separate_groups


def test_each_parameter_has_a_step_of_its_own_where_it_lives() -> None:
    """The fused Adam of a GPU reads the step by its address; `meta` stands in for a GPU."""
    parameters = [torch.nn.Parameter(torch.empty(2, device="meta")), torch.nn.Parameter(torch.zeros(2))]
    groups = [{"params": [p], "weight_decay": decay} for p, decay in zip(parameters, (0.1, 0.0), strict=True)]
    optimizer = torch.optim.AdamW(groups)
    shared = torch.tensor(3.0)
    with _separate_groups(optimizer):
        for parameter in parameters:
            optimizer.state[parameter]["step"] = shared
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.5
    steps = [optimizer.state[parameter]["step"] for parameter in parameters]
    assert [step.device.type for step in steps] == ["meta", "cpu"]
    assert steps[1] is not shared
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
