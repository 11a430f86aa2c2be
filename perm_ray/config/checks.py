"""What the sections check their values with. Each failed check is a `ConfigError` in one sentence."""

from __future__ import annotations

from collections.abc import Mapping

from perm_ray.errors import ConfigError


def require(condition: bool, key: str, expected: str, found: object) -> None:
    if not condition:
        raise ConfigError(f"{key} must be {expected}, found {found!r}: change it and start again.")


def positive(section: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{section}.{name}", "greater than 0", value)


def at_least_zero(section: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(value >= 0, f"{section}.{name}", "0 or more", value)


def one_of(section: str, config: object, name: str, *choices: object) -> None:
    value = getattr(config, name)
    expected = "one of " + ", ".join(map(str, choices))
    require(value in choices, f"{section}.{name}", expected, value)


def custom_resources(section: str, resources: Mapping[str, float]) -> None:
    """Names of a cluster's own resources and how much of each an actor takes; CPUs and GPUs have keys."""
    for name, amount in resources.items():
        key = f"{section}.resources"
        require(name not in ("CPU", "GPU", "memory"), key, "without CPU and GPU (num_cpus, num_gpus)", name)
        require(amount > 0, f"{key}.{name}", "greater than 0", amount)
