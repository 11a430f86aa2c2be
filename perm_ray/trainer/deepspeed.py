"""DeepSpeed as this project uses it: how ranks meet, the engine's settings, its updates.

Each odd line is a trap that was met and measured; the comment beside it says which.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
from datetime import timedelta
from typing import Any, TypeAlias

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from perm_ray.cluster.rendezvous import join_store, use_interface_towards
from perm_ray.config.training import TrainerConfig
from perm_ray.trainer.buffer_sizes import BUCKET_ELEMENTS
from perm_ray.trainer.schedule import lr_factor

_WAITS = itertools.count()  # every rank counts the same
Engine: TypeAlias = Any  # a DeepSpeedEngine, whose own annotations do not fit what it does


def quiet_libraries() -> None:
    """Leave the log to what matters: no progress bars, and only DeepSpeed's warnings."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()


def join(
    config: TrainerConfig, rank: int, address: tuple[str, int], store: TCPStore | None, seed: int
) -> None:
    """Bring this rank into the process group. `store` is rank 0's own; the others connect to it."""
    host, port = address
    timeout = timedelta(seconds=config.collective_timeout_s)
    backend = "nccl" if config.num_gpus > 0 else "gloo"
    torch.set_num_threads(config.num_threads)  # Ray's OMP_NUM_THREADS leaves torch at 1
    random.seed(seed + rank)
    np.random.seed(seed + rank)
    torch.manual_seed(seed + rank)
    # DeepSpeed clones the world group without passing a timeout: a stuck peer would be waited for
    # 30 minutes. new_group() falls back on this default.
    dist.distributed_c10d.default_pg_timeout = timeout  # gloo's
    dist.distributed_c10d.default_pg_nccl_timeout = timeout  # pyright: ignore[reportPrivateImportUsage]
    if config.num_gpus > 0:
        # On an H100 cuDNN is preferred and makes a plan of some 30 ms for every new length and stride.
        torch.backends.cuda.enable_cudnn_sdp(False)
    use_interface_towards(host)
    if store is None:
        store = join_store(host, port, config.num_ranks, config.collective_timeout_s)
    os.environ.update(
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(config.num_ranks),
        LOCAL_RANK="0",  # an actor sees only its own device
    )
    # No device_id: with one, NCCL weight sync hangs (open-instruct#1311).
    dist.init_process_group(backend, store=store, rank=rank, world_size=config.num_ranks, timeout=timeout)
    # An op that training never uses, which would be compiled now: 95 s, or a crash without ninja.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(backend, timeout=timeout)


def wait_for_rank_0(rank: int, timeout_s: float) -> None:
    """Have the other ranks wait until rank 0 comes here, after work that it did alone; every rank calls it.

    Not a barrier: a collective's own limit (`collective_timeout_s`) would end the ranks while rank 0 still
    writes a large model.
    """
    key = f"rank 0 was here {next(_WAITS)} times before"
    store = dist.distributed_c10d._get_default_store()
    if rank == 0:
        store.set(key, "yes")
    else:
        store.wait([key], timedelta(seconds=timeout_s))


def settings(config: TrainerConfig) -> dict[str, Any]:
    """DeepSpeed's configuration."""
    bucket = BUCKET_ELEMENTS["cuda" if config.num_gpus > 0 else "cpu"]
    adam = {
        "lr": config.lr,
        "betas": list(config.adam_betas),
        "eps": 1e-8,
    }
    if not config.offload_optimizer:
        adam |= {"torch_adam": True, "fused": True}  # torch's own: DeepSpeed's are compiled on first use
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # the learner marks the boundary: counts differ by step
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "gradient_clipping": config.max_grad_norm,
        "optimizer": {"type": "AdamW", "params": adam},
        "steps_per_print": 10**9,
    }
    if config.zero_stage > 0:
        result["data_types"] = {"grad_accum_dtype": "fp32"}  # the default under bf16 is bf16
    if config.num_gpus > 0 and config.zero_stage > 0:
        result["zero_optimization"]["overlap_comm"] = True  # its default at stage 3 alone
    if config.offload_optimizer:  # by DeepSpeed's documentation; not run on a GPU by this project yet
        result["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return result


def parameter_groups(config: TrainerConfig, model: PreTrainedModel) -> list[dict[str, Any]]:
    """Return the optimizer's groups: matrices have weight decay, norms and biases (one-dimensional) none."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]  # DeepSpeed stumbles over an empty one


def build_engine(config: TrainerConfig, model: PreTrainedModel, total_steps: int) -> Engine:
    """Hand the model to DeepSpeed, with gradient checkpointing as configured."""
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    factor = lr_factor(config, total_steps)
    initialize: Any = deepspeed.initialize  # its annotations do not know groups of parameters
    engine, *_ = initialize(
        model=model,
        model_parameters=parameter_groups(config, model),
        config=settings(config),
        lr_scheduler=lambda optimizer: LambdaLR(optimizer, factor),
    )
    return engine


def update(engine: Engine) -> float:
    """Step the optimizer at the end of the accumulated micro-batches; returns the gradient's norm before
    clipping. A gradient that is not finite is dropped instead, and its norm is inf or nan.
    """
    norm = None
    if engine.zero_optimization_stage() == 0:  # where DeepSpeed neither reports the norm nor checks it
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            discard_gradients(engine)
            return norm
    engine.step()
    return float(engine.get_global_grad_norm()) if norm is None else norm


def discard_gradients(engine: Engine) -> None:
    """Forget what backward has accumulated on the parameters. Meant for an engine that steps no more:
    ZeRO-2 keeps the partition it had reduced."""
    engine.zero_grad()
    engine.optimizer.zero_grad()
