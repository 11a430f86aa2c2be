"""The last step's metrics as gauges of Ray's own monitoring, for Prometheus and Grafana.

Only in a cluster that was joined: a private one exports nothing. `cluster/grafana/perm_ray.json` draws them.
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections.abc import Mapping
from typing import Any

from perm_ray.tracking.sinks import Purpose, Sink

PREFIX = "perm_ray_"


def gauge_name(metric: str) -> str:
    """`judge/resonation/mean` is `perm_ray_judge_resonation_mean` (Ray puts `ray_` before it).

    Prometheus knows ASCII only. Letters lose their accents; where others are lost (of a culture's own name in
    its own script) a number tells the names apart.
    """
    letters = [c for c in unicodedata.normalize("NFKD", metric) if not unicodedata.combining(c)]
    name = re.sub(r"[^a-zA-Z0-9]+", "_", "".join(letters)).strip("_").lower()
    lost = not all(map(str.isascii, letters))
    return f"{PREFIX}{name}_{zlib.crc32(metric.encode()):08x}" if lost else PREFIX + name


class RayGauges(Sink):
    """A gauge for each metric, made when it is first seen. `run` tells the runs of a cluster apart."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Any] = {}

    def metrics(self, step: int, metrics: Mapping[str, float], purpose: Purpose = "train") -> None:
        """Show a training step's values; a metric that is not finite keeps its last value."""
        from ray.util.metrics import Gauge

        if purpose != "train":
            return

        for metric, value in {**metrics, "step": float(step)}.items():
            if not math.isfinite(value):
                continue
            if metric not in self._gauges:
                told = metric.encode("ascii", "replace").decode()
                gauge = Gauge(gauge_name(metric), description=told, tag_keys=("run",))
                gauge.set_default_tags({"run": self._run})
                self._gauges[metric] = gauge
            self._gauges[metric].set(value)
