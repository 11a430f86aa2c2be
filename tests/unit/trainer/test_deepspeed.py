"""DeepSpeed's settings, by device."""

from __future__ import annotations

from perm_ray.config.training import TrainerConfig
from perm_ray.trainer.deepspeed import settings


def test_gradients_are_reduced_in_large_overlapping_buckets_on_gpus_alone() -> None:
    cpu, gpu = (settings(TrainerConfig(num_gpus=gpus))["zero_optimization"] for gpus in (0.0, 1.0))
    assert "overlap_comm" not in cpu
    assert cpu["reduce_bucket_size"] == 20_000_000
    assert gpu["overlap_comm"]
    assert gpu["reduce_bucket_size"] == gpu["allgather_bucket_size"] == 100_000_000
