"""Gauges for Prometheus: their names, and that the dashboard asks for ones that a run really has."""

from __future__ import annotations

import json
import re
from pathlib import Path

from perm_ray.data.scenarios import load_scenarios
from perm_ray.tracking.gauges import RayGauges, gauge_name
from perm_ray.tracking.slices import slice_names
from tests.e2e.test_train import BUILTIN_PERSPECTIVES, METRICS

DASHBOARD = Path(__file__).parents[3] / "cluster" / "grafana" / "perm_ray.json"
# Of a run's metrics those that the end-to-end test does not list one by one.
FURTHER = {
    *(
        f"judge/{p}/{name}"
        for p in BUILTIN_PERSPECTIVES
        for name in ("mean", "unparseable", "busy", "wait_s")
    ),
    *("policy/mismatch_kl", "time/checkpoint_s", "step"),
}


def test_a_gauge_has_a_name_that_prometheus_takes() -> None:
    assert gauge_name("judge/resonation/mean") == "perm_ray_judge_resonation_mean"
    assert gauge_name("slice/language/pt-BR/reward") == "perm_ray_slice_language_pt_br_reward"
    assert gauge_name("slice/culture/Québécois/reward") == "perm_ray_slice_culture_quebecois_reward"
    others = [gauge_name(f"slice/culture/{name}/reward") for name in ("日本", "中国", "Ελλάδα")]
    assert len(set(others)) == 3
    assert all(re.fullmatch(r"perm_ray_slice_culture_reward_[0-9a-f]{8}", name) for name in others)


def test_ray_takes_the_gauge_of_any_scenarios_tag() -> None:
    slices = {name for scenario in load_scenarios("builtin:train") for name in slice_names(scenario)}
    assert not all(map(str.isascii, slices))
    metrics = {f"slice/{name}/reward": 0.5 for name in (*slices, "culture/日本")}
    RayGauges("kind").metrics(1, metrics)


def test_the_dashboard_asks_for_gauges_that_a_run_has() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    known = {f"ray_{gauge_name(metric)}" for metric in METRICS | FURTHER}
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(asked) > 30
    for expression in asked:
        match = re.fullmatch(r'(\w+)\{run=~"\$run"\}', expression)
        assert match is not None, expression
        assert match[1] in known


def test_the_panels_do_not_lie_on_each_other() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        taken |= cells
    assert max(x for x, _ in taken) == 23
