"""Sizes of the trainer's buffers by device, which `perm-ray plan` counts, too. Pure."""

from __future__ import annotations

# Logits at a time: 4 MB in float32 stay in a core's cache; 128 MB keep a GPU busy, and its launches few.
HEAD_BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 25}

# Gradients reduced at a time: DeepSpeed's default of 5e8 costs a CPU memory and 10 % of the speed.
BUCKET_ELEMENTS = {"cpu": 20_000_000, "cuda": 100_000_000}
