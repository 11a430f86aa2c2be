"""The sections of judging: who judges, how an answer becomes a score, and how much failure is borne."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Optional

from perm_ray.config.checks import at_least_zero, one_of, positive, require
from perm_ray.config.engines import BUILTIN_MODEL, EngineConfig
from perm_ray.config.redact import redact_text

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")  # what an environment variable is called, and no key is


@dataclass(frozen=True)
class JudgeEngineConfig(EngineConfig):
    """An engine with a model of its own; rollout engines always hold the policy."""

    model: str = BUILTIN_MODEL


@dataclass(frozen=True)
class JudgeEndpointConfig:
    """Judges that live elsewhere, OpenAI-compatible. A key's variable is named here, never the key."""

    base_url: str = ""
    model: str = ""
    api_key_env: Optional[str] = None
    max_concurrency: int = 16
    rpm: Optional[int] = None
    tpm: Optional[int] = None
    timeout_s: float = 60.0
    max_retries: int = 3
    queue_timeout_s: float = 240.0
    logprobs: bool = False
    structured: str = "none"
    breaker_failures: int = 8
    breaker_cooldown_s: float = 30.0

    def __post_init__(self) -> None:
        section = "judges.endpoints.<name>"
        shown = redact_text(self.base_url)
        at = re.match(r"https?://[^/?#\s]", self.base_url) is not None and shown == self.base_url
        expected = "an address such as http://host:8000/v1, without a password or key in it"
        require(at, f"{section}.base_url", expected, shown)
        require(bool(self.model), f"{section}.model", "the model's name at the endpoint", self.model)
        if self.api_key_env is not None:
            named = bool(_VARIABLE.fullmatch(self.api_key_env))
            require(named, f"{section}.api_key_env", "the NAME of an environment variable", "something else")
        positive(section, self, "max_concurrency", "timeout_s", "queue_timeout_s")
        positive(section, self, "breaker_failures", "breaker_cooldown_s")
        at_least_zero(section, self, "max_retries")
        for name in ("rpm", "tpm"):
            limit = getattr(self, name)
            require(limit is None or limit > 0, f"{section}.{name}", "greater than 0 or null", limit)
        one_of(section, self, "structured", "none", "json_schema", "regex")

    @property
    def longest_call_s(self) -> float:
        """The most that one answer may take: its place in the queue and all tries."""
        return self.queue_timeout_s + self.timeout_s * (self.max_retries + 1)


@dataclass(frozen=True)
class ScoringConfig:
    """How a judge's answer becomes a score: see `judges/modes.py`."""

    mode: str = "reasoned"
    max_reason_tokens: int = 96
    num_samples: int = 4
    temperature: float = 1.0
    min_mass: float = 0.2

    def __post_init__(self) -> None:
        section = "judges.pools.<perspective>.scoring"
        one_of(section, self, "mode", "expected", "reasoned", "sampled")
        positive(section, self, "max_reason_tokens", "num_samples", "temperature")
        require(0 <= self.min_mass <= 1, f"{section}.min_mass", "in [0, 1]", self.min_mass)


@dataclass(frozen=True)
class JudgePoolConfig:
    """One perspective's pool. `engine` names an entry of `judges.engines`; pools may share one."""

    engine: str = "judge"
    rubric: Optional[str] = None
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    fence: str = "call"
    max_chars: int = 6000
    max_queue: int = 64
    retries: int = 1
    timeout_s: float = 300.0

    def __post_init__(self) -> None:
        section = "judges.pools.<perspective>"
        positive(section, self, "max_chars", "max_queue", "timeout_s")
        at_least_zero(section, self, "retries")
        one_of(section, self, "fence", "call", "group")


def _four_pools() -> dict[str, JudgePoolConfig]:
    names = ("resonation", "expression", "reception", "bystander")
    return {name: JudgePoolConfig(engine=name) for name in names}


def _four_engines() -> dict[str, JudgeEngineConfig]:
    return {name: JudgeEngineConfig() for name in _four_pools()}


@dataclass(frozen=True)
class AmbiguityConfig:
    """When a rollout is listed for people to read; `list_size` is how many a step at most."""

    entropy: float = 0.9
    disagreement: float = 0.5
    list_size: int = 16

    def __post_init__(self) -> None:
        at_least_zero("judges.ambiguity", self, "entropy", "disagreement", "list_size")


@dataclass(frozen=True)
class JudgesConfig:
    """The judge pools, the engines and endpoints they ask, and how much failure a run bears."""

    engines: dict[str, JudgeEngineConfig] = field(default_factory=_four_engines)
    endpoints: dict[str, JudgeEndpointConfig] = field(default_factory=dict)
    pools: dict[str, JudgePoolConfig] = field(default_factory=_four_pools)
    max_failure_rate: float = 0.5
    failure_window: int = 4
    ambiguity: AmbiguityConfig = field(default_factory=AmbiguityConfig)

    def __post_init__(self) -> None:
        twice = sorted(self.engines.keys() & self.endpoints.keys())
        require(not twice, "judges.endpoints", "names that no engine has", ", ".join(twice))
        for name, pool in self.pools.items():
            known = ", ".join(sorted(self.engines | self.endpoints)) or "none"
            key = f"judges.pools.{name}.engine"
            there = pool.engine in self.engines or pool.engine in self.endpoints
            require(there, key, f"one of judges.engines or judges.endpoints ({known})", pool.engine)
            endpoint = self.endpoints.get(pool.engine)
            seen = endpoint is None or endpoint.logprobs or pool.scoring.mode != "expected"
            expected = "reasoned or sampled with an endpoint that gives no logprobs"
            require(seen, f"judges.pools.{name}.scoring.mode", expected, pool.scoring.mode)
        positive("judges", self, "failure_window")
        require(0 < self.max_failure_rate <= 1, "judges.max_failure_rate", "in (0, 1]", self.max_failure_rate)

    def replicas(self, pool: JudgePoolConfig) -> int:
        """How many judges a pool has: one for each replica of its engine."""
        engine = self.engines.get(pool.engine)
        return engine.replicas if engine else 1

    def model(self, pool: JudgePoolConfig) -> str:
        """Who judges: the model of a pool's engine or endpoint."""
        return (self.engines.get(pool.engine) or self.endpoints[pool.engine]).model
