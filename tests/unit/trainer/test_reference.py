"""The frozen reference: where its weights are between two uses."""

from __future__ import annotations

from pathlib import Path

import torch

from perm_ray.trainer.packing import pack
from perm_ray.trainer.reference import FrozenCopy
from tests.support.sequences import one_turn
from tests.support.tiny_model import write_tiny_model


def test_an_offloaded_reference_returns_to_the_same_host_memory(tmp_path: Path) -> None:
    model_dir, cpu = write_tiny_model(tmp_path / "tiny"), torch.device("cpu")
    kept, offloaded = (FrozenCopy(model_dir, torch.float32, cpu, offload) for offload in (False, True))
    before = [parameter.data_ptr() for parameter in offloaded._model.parameters()]
    batch = pack(((one_turn((5, 6), (7, 8, 9), (-1.0,) * 3, 1.0),),), cpu)
    assert torch.equal(kept(batch), offloaded(batch))
    assert [parameter.data_ptr() for parameter in offloaded._model.parameters()] == before
