"""What a rank writes into a checkpoint and reads back: DeepSpeed's state and the random generators.

`learner.py` calls it on every rank. Whether a checkpoint is whole is decided above, in `checkpoint.py`.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from perm_ray.errors import CheckpointError
from perm_ray.trainer.engine import Engine

CHECKPOINT_TAG = "deepspeed"


def save_state(engine: Engine, path: Path, rank: int) -> None:
    """Write everything a bitwise resume needs under `path`, flushed to disk. Every rank calls it.

    Not atomic: the caller writes to a folder aside and renames it.
    """
    engine.save_checkpoint(str(path), tag=CHECKPOINT_TAG, save_latest=False)
    torch.save(_random_state(), _random_file(path, rank))  # DeepSpeed leaves the generators out
    dist.barrier()
    folder = path / CHECKPOINT_TAG
    # Every rank flushes every file: a second flush is free, and on a shared disk only the writer's counts.
    for name in [*folder.iterdir(), folder, path]:
        descriptor = os.open(name, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    dist.barrier()


def load_state(engine: Engine, path: Path, rank: int, num_ranks: int) -> None:
    """Restore what `save_state` wrote, into a fresh engine with as many ranks. Every rank calls it."""
    found = len(list((path / CHECKPOINT_TAG).glob("rng_rank*.pt")))
    if found == 0:
        raise CheckpointError(f"{path} holds no trainer checkpoint: give the folder of a finished one.")
    if found != num_ranks:
        raise CheckpointError(
            f"{path} holds a trainer checkpoint of {found} ranks, but trainer.num_ranks is {num_ranks}: "
            "resume with as many ranks as it was saved with."
        )
    engine.load_checkpoint(str(path), tag=CHECKPOINT_TAG)
    _restore_random_state(torch.load(_random_file(path, rank), weights_only=True))


def _random_file(path: Path, rank: int) -> Path:
    return path / CHECKPOINT_TAG / f"rng_rank{rank}.pt"


def _random_state() -> dict[str, Any]:
    numpy_state: dict[str, Any] = dict(np.random.get_state(legacy=False))
    key = numpy_state["state"]["key"].tolist()  # plain values load with weights_only
    return {
        "python": random.getstate(),
        "numpy": numpy_state | {"state": {"key": key, "pos": numpy_state["state"]["pos"]}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    key = np.array(state["numpy"]["state"]["key"], dtype=np.uint32)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"] | {"state": {"key": key, "pos": state["numpy"]["state"]["pos"]}})
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
