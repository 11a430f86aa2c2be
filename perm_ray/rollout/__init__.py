"""Sampling: the actor that hosts a policy engine and the pool the driver holds."""
