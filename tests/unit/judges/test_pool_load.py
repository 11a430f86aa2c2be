"""How busy the pools were: hand-worked intervals."""

from __future__ import annotations

import pytest

from perm_ray.judges.pool_load import CallRecord, PoolLoad, intersect_all, load_metrics, merge, total_duration


def test_intervals() -> None:
    assert merge([(3, 5), (0, 1), (4, 6), (1, 2)]) == [(0, 2), (3, 6)]
    assert intersect_all([[(0, 4), (6, 9)], [(1, 2), (3, 7)]]) == [(1, 2), (3, 4), (6, 7)]
    assert intersect_all([[(0, 1)], [(2, 3)]]) == []
    assert total_duration([(0, 2), (3, 6)]) == 5
    assert merge([]) == intersect_all([]) == []


def test_the_queue_counts_what_waits_and_what_is_being_judged() -> None:
    calls = (CallRecord(2, 0.0, 9.0, ((1.0, 4.0),)), CallRecord(3, 2.0, 9.0, ((4.0, 6.0),)))
    assert PoolLoad(calls).queue_max == 5
    assert PoolLoad((calls[0], CallRecord(3, 4.5, 9.0, ((5.0, 6.0),)))).queue_max == 3
    assert PoolLoad((CallRecord(2, 0.0, 1.0, ()),)).queue_max == 2  # failed: it never worked
    assert PoolLoad().queue_max == 0


def test_metrics_of_a_step() -> None:
    loads = {
        "expression": PoolLoad((CallRecord(1, 0.0, 6.5, ((1.0, 6.0),)),), shared=2),
        "bystander": PoolLoad((CallRecord(1, 0.0, 11.5, ((2.0, 4.0), (5.0, 11.0))),)),
    }
    metrics = load_metrics(loads, sampled_at=8.0)
    assert metrics["judge/expression/busy"] == pytest.approx(5 / 10)
    assert metrics["judge/bystander/busy"] == pytest.approx(8 / 10)
    assert metrics["judge/busy_together"] == pytest.approx(3 / 10)  # 2 to 4 and 5 to 6, of 1 to 11
    assert metrics["judge/expression/wait_s"] == 0.0
    assert metrics["judge/bystander/wait_s"] == pytest.approx(3.5)
    assert metrics["judge/expression/shared"] == 2
    assert metrics["judge/bystander/queue_max"] == 1


def test_a_step_in_which_nothing_was_judged_has_no_shares() -> None:
    assert load_metrics({"expression": PoolLoad()}, sampled_at=1.0) == {
        "judge/expression/queue_max": 0.0,
        "judge/expression/wait_s": 0.0,
        "judge/expression/shared": 0.0,
    }
