"""Write a rank's part of a checkpoint and read it back: DeepSpeed's state and the random generators.

`learner.py` calls it on every rank. A save copies the state to host memory, which is all that training
waits for; a thread writes the copy out. Whether a checkpoint is whole is decided above, in `checkpoint.py`,
from the digests that every rank reports.
"""

from __future__ import annotations

import copy
import functools
import random
import shutil
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor

from perm_ray.errors import CheckpointError, RunError
from perm_ray.files import FileDigest, in_background, write_hashed
from perm_ray.trainer.deepspeed import Engine, wait_for_rank_0
from perm_ray.trainer.ema import WeightAverage

TAG = "deepspeed"  # the folder that DeepSpeed makes in ours
RESHARDED = "resharded"
RNG_FILE = "rng_rank{}.pt"
AVERAGE_FILE = "average.pt"

# The only classes beside tensors and plain values that DeepSpeed puts into its files: with them they load
# by `weights_only`, which runs no code out of a file.
torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])


class HostCopies(CheckpointEngine):
    """Stands where DeepSpeed has its writer, and keeps copies of what it is given instead of writing."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[Path, Any] = {}

    def create(self, info: object) -> None:
        """Note that a save begins."""
        del info
        self.files = {}

    def save(self, state_dict: Any, path: str) -> None:
        self.files[Path(path)] = _host_copy(state_dict, {})

    def load(self, path: str, map_location: Any = None) -> Any:
        return torch.load(path, map_location=map_location, weights_only=True)

    def commit(self, info: object) -> None:
        """Nothing to commit: who saves decides when the files are written."""
        del info


class RankState:
    """The state of one rank's engine: saved, written, restored. Every rank calls the same."""

    def __init__(
        self,
        engine: Engine,
        rank: int,
        num_ranks: int,
        timeout_s: float,
        average: WeightAverage | None = None,
    ) -> None:
        self._engine = engine
        self._average = average
        self._rank = rank
        self._num_ranks, self._timeout_s = num_ranks, timeout_s
        self._copies = HostCopies()
        self._writing: Future[dict[str, FileDigest]] | None = None
        engine.checkpoint_engine = self._copies
        # A base model under an adapter never changes: it is not saved.
        self._frozen = any(not parameter.requires_grad for parameter in engine.module.parameters())

    def save(self, path: Path) -> None:
        """Copy all that a bitwise resume needs, and begin to write it under `path`.

        Not atomic: the caller writes to a folder aside and renames it, when `written` says it is there.
        """
        if self._writing is not None:
            raise RunError(f"Rank {self._rank} was to save to {path} while it still wrote the save before.")
        self._engine.save_checkpoint(
            str(path), tag=TAG, save_latest=False, exclude_frozen_parameters=self._frozen
        )
        files, self._copies.files = self._copies.files, {}
        files[path / TAG / RNG_FILE.format(self._rank)] = _random_state()  # which DeepSpeed leaves out
        if self._average is not None and self._rank == 0:
            files[path / TAG / AVERAGE_FILE] = self._average.state()
        self._writing = in_background(lambda: _write(files, path), "checkpoint")

    def written(self) -> dict[str, FileDigest]:
        """Wait until the last save's files are on the disk; their names under `path` and their digests."""
        if self._writing is None:
            raise RunError(f"Rank {self._rank} was asked for a save that it had not begun.")
        try:
            return self._writing.result()
        finally:
            self._writing = None

    def load(self, path: Path) -> None:
        """Restore what `save` wrote, into a fresh engine; another number of ranks shares it out anew."""
        saved_ranks = len(list((path / TAG).glob(RNG_FILE.format("*"))))
        if saved_ranks == 0:
            raise CheckpointError(f"{path} holds no trainer checkpoint: give the folder of a finished one.")
        if saved_ranks == self._num_ranks or self._engine.zero_optimization_stage() == 0:
            self._engine.load_checkpoint(str(path), tag=TAG, load_module_strict=not self._frozen)
        else:
            self._load_resharded(path)
        if self._average is not None and self._rank == 0:
            average_file = path / TAG / AVERAGE_FILE
            if not average_file.exists():
                raise CheckpointError(
                    f"{path} has no averaged weights: resume with trainer.ema_decay=0, as it was made."
                )
            self._average.restore(torch.load(average_file, weights_only=True))
        # A rank that the saving run did not have goes on with the generators it started with.
        if self._rank < saved_ranks:
            random_file = path / TAG / RNG_FILE.format(self._rank)
            _restore_random_state(torch.load(random_file, weights_only=True))

    def _load_resharded(self, path: Path) -> None:
        """Load by DeepSpeed's universal checkpoint: rank 0 writes every parameter whole, all ranks read
        it."""
        folder = path.with_name(RESHARDED)
        if self._rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # of a load that was killed
            _reshard(path / TAG, folder / TAG)
        wait_for_rank_0(self._rank, self._timeout_s)
        self._engine._config.load_universal_checkpoint = True
        with _separate_groups(self._engine.optimizer.optimizer):
            self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=not self._frozen)
        self._engine._config.load_universal_checkpoint = False
        dist.barrier()
        if self._rank == 0:
            shutil.rmtree(folder)


@contextmanager
def _separate_groups(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Separate the groups of parameters that DeepSpeed's universal checkpoint makes one under ZeRO-3.

    It hands the same step tensor to every group, which then counts an update once a group, and the first
    group's weight decay to all.
    """
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    yield
    for parameter, state in optimizer.state.items():
        if isinstance(state.get("step"), Tensor):
            # Its checkpoint has the step on the CPU, and the fused kernel of a GPU reads it by its address.
            state["step"] = state["step"].to(parameter.device, copy=True)
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay


def _reshard(source: Path, target: Path) -> None:
    """DeepSpeed's converter, whose only interface is its command line."""
    arguments = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # stages 1 and 2 have none, and it demands it
    )
    ds_to_universal.main(arguments)


def _write(files: Mapping[Path, Any], folder: Path) -> dict[str, FileDigest]:
    digests: dict[str, FileDigest] = {}
    for path, state in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.relative_to(folder).as_posix()
        digests[name] = write_hashed(path, functools.partial(torch.save, state))
    return digests


def _host_copy(value: Any, seen: dict[tuple[object, ...], Tensor]) -> Any:
    """Return a copy that later updates do not reach. Tensors go to host memory, tied ones once."""
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if key not in seen or value.numel() == 0:
            seen[key] = value.detach().to("cpu", copy=True)
        return seen[key]
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _host_copy(entry, seen)) for key, entry in value.items())
    if type(value) in (list, tuple):
        return type(value)(_host_copy(entry, seen) for entry in value)
    return copy.deepcopy(value)


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
