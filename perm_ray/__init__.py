"""Train language models to be empathetic: PERM, rewards from four perspectives (arXiv 2601.10532).

The public names are loaded when they are first used; importing the package loads nothing heavy.

    load_config   a configuration from a file, a shipped name or a mapping
    Judges        the judges of a configuration, for texts of any origin
    train         a whole training run
    Perspective, load_perspective   one way of looking at a reply
    Judgment, Reward, Scale         what judges say, and what becomes of it
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perm_ray.config.load import load_config as load_config
    from perm_ray.judges.perspective import Perspective as Perspective
    from perm_ray.judges.perspective import load_perspective as load_perspective
    from perm_ray.judges.startup import Judges as Judges
    from perm_ray.runs.start import train as train
    from perm_ray.types import Judgment as Judgment
    from perm_ray.types import Reward as Reward
    from perm_ray.types import Scale as Scale

_PUBLIC = {
    "load_config": "perm_ray.config.load",
    "Judges": "perm_ray.judges.startup",
    "train": "perm_ray.runs.start",
    "Perspective": "perm_ray.judges.perspective",
    "load_perspective": "perm_ray.judges.perspective",
    "Judgment": "perm_ray.types",
    "Reward": "perm_ray.types",
    "Scale": "perm_ray.types",
}
__all__ = [
    "Judges",
    "Judgment",
    "Perspective",
    "Reward",
    "Scale",
    "load_config",
    "load_perspective",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'perm_ray' has no attribute {name!r}: it has {', '.join(_PUBLIC)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
