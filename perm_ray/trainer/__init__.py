"""GRPO on DeepSpeed: batches, loss, one rank, the group of ranks."""
