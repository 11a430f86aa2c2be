"""Record where a run stands and what it is made of: a checkpoint's `state.json`.

A resumed run must be the same experiment: `check_agrees` compares what must not have changed and names
what did. Everything in the configuration counts but for the keys in `RESUME_MAY_DIFFER`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from perm_ray.config.redact import redact
from perm_ray.config.schema import Config
from perm_ray.errors import CheckpointError
from perm_ray.files import jsonable
from perm_ray.tracking.environment import package_versions

# What may differ between two sessions of one run. Paths may, because what they lead to is compared by
# content; so may where and how fast things run, and what is kept. A new key is compared until it is here.
RESUME_MAY_DIFFER = (
    *("run.name", "run.dir", "run.steps", "ray.*", "tracking.*", "checkpoint.*", "sync.*"),
    *("data.*", "finetune.data", "prompt.template", "judges.pools.*.rubric", "evaluation.every"),
    "evaluation.truth",
    *("*.timeout_s", "*_timeout_s", "judges.max_failure_rate", "judges.failure_window"),
    *("*.replicas", "*.num_cpus", "*.num_gpus", "*.num_threads", "*.resources.*", "*.tensor_parallel_size"),
    *("*.max_num_seqs", "*.kv_cache_gb", "*.gpu_memory_utilization", "*.enforce_eager"),
    *("*.prefix_caching", "judges.pools.*.max_queue", "judges.ambiguity.*", "evaluation.probes.*"),
    *(
        f"models.*.{key}"
        for key in ("base_url", "api_key_env", "max_concurrency", "max_retries", "rpm", "tpm")
    ),
    *("trainer.num_ranks", "trainer.gradient_checkpointing", "trainer.limits.*"),
)


@dataclass(frozen=True, slots=True)
class RunState:
    """The state of a run after `step` finished steps; the weights' version is the step.

    `config` is the resolved configuration; `contents` names what its paths lead to, by digest, and
    `weights` the models that it started from. `packages` are the versions it ran with; `wall_time_s` is
    what was spent so far; `before` holds the held-out rewards from before training, and `failures` the judge
    failures of the last steps, which the failure limit goes on from.
    """

    step: int
    sampler: Mapping[str, Any]
    config: Mapping[str, Any]
    contents: Mapping[str, str]
    weights: Mapping[str, str]
    packages: Mapping[str, str]
    mlflow_run_id: str | None
    wall_time_s: float
    before: Mapping[str, Any]
    failures: Sequence[Any] = field(default_factory=list)

    @classmethod
    def new(cls, sampler: Mapping[str, Any], contents: Mapping[str, str], config: Config) -> RunState:
        """Return a run that has not begun."""
        plain = jsonable(redact(config.as_dict()))
        assert isinstance(plain, dict)
        return cls(
            step=0,
            sampler=sampler,
            config=plain,
            contents=contents,
            weights={},
            packages=package_versions(),
            mlflow_run_id=None,
            wall_time_s=0.0,
            before={},
        )

    def without_weights(self) -> RunState:
        """Return the state as it was before any model was looked at."""
        return replace(self, weights={})

    def resumed_as(self, now: RunState) -> RunState:
        """Return the same place in the run, with this session's configuration and packages."""
        return replace(self, config=now.config, packages=now.packages)


def check_agrees(saved: RunState, now: RunState) -> None:
    """Refuse to go on with another experiment. Raises `CheckpointError` that names every difference."""
    then, given = _compared(saved), _compared(now)
    changed = [key for key in {**then, **given} if then.get(key, _UNSET) != given.get(key, _UNSET)]
    if changed:
        told = "; ".join(
            f"{key}: {_told(then.get(key, _UNSET))} then, {_told(given.get(key, _UNSET))} now"
            for key in changed
        )
        raise CheckpointError(
            f"This checkpoint was made with something else ({told}). Resume with what the run was started "
            "with, or start a new run."
        )


def numeric_warnings(saved: RunState, now: RunState) -> list[str]:
    """Return what may differ between two sessions and yet changes the last bits of results."""
    notes = []
    ranks_then, ranks_now = (state.config["trainer"]["num_ranks"] for state in (saved, now))
    if ranks_then != ranks_now:
        notes.append(f"trainer.num_ranks is {ranks_now}, {ranks_then} then")
    names = {**saved.packages, **now.packages}
    for name in names:
        ours, theirs = now.packages.get(name, "absent"), saved.packages.get(name, "absent")
        if ours != theirs:
            notes.append(f"{name} is {ours}, {theirs} then")
    return notes


_UNSET = object()  # None is a value


def _compared(state: RunState) -> dict[str, Any]:
    leaves = dict(_leaves(state.config, ""))
    fixed = {key: value for key, value in leaves.items() if not _may_change(key)}
    return {**state.contents, **state.weights, **fixed}


def _may_change(key: str) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in RESUME_MAY_DIFFER)


def _leaves(value: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, entry in value.items():
        key = f"{prefix}{name}"
        leaves += _leaves(entry, f"{key}.") if isinstance(entry, Mapping) else [(key, entry)]
    return leaves


def _told(value: object) -> str:
    if value is _UNSET:
        return "absent"
    is_digest = isinstance(value, str) and len(value) == 64
    return str(value)[:12] if is_digest else str(value)
