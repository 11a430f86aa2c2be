"""What MLflow could not be given is kept in a file, in order, through kills."""

from __future__ import annotations

import os
from pathlib import Path

from perm_ray.tracking.spool import Record, Spool


def record(step: int, **values: float) -> Record:
    return Record("metrics", step, 1000 + step, values)


def taken(spool: Spool) -> list[int]:
    steps = []
    while (first := spool.first()) is not None:
        steps.append(first.step)
        spool.forget_first()
    return steps


def test_first_in_first_out_and_nothing_is_left_behind(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert (len(spool), spool.first(), list(tmp_path.iterdir())) == (0, None, [])
    for step in range(3):
        assert spool.append(record(step, loss=0.5))
    assert len(spool) == 3
    assert spool.first() == record(0, loss=0.5)
    spool.forget_first()
    spool.append(record(3))
    assert taken(spool) == [1, 2, 3]
    assert list(tmp_path.iterdir()) == []


def test_another_process_goes_on_with_it(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    for step in range(4):
        first.append(record(step))
    first.forget_first()
    first.compact()
    with first.path.open("a") as file:
        file.write('{"kind": "metrics", "ste')  # a kill in the middle of a line
    second = Spool(tmp_path)
    assert len(second) == 3
    second.append(record(9))
    assert taken(second) == [1, 2, 3, 9]


def test_a_line_of_somebody_else_is_passed_over(tmp_path: Path) -> None:
    Spool(tmp_path).append(record(1))
    with (tmp_path / "mlflow_spool.jsonl").open("a") as file:
        file.write('nonsense\n{"a": 1}\n')
    spool = Spool(tmp_path)
    spool.append(record(2))
    assert taken(spool) == [1, 2]


def test_a_resumed_run_forgets_what_it_does_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for step in range(1, 6):
        spool.append(record(step))
    spool.append(Record("end", 0, 1, {"status": "KILLED"}))
    spool.keep_until(3)
    assert taken(spool) == [1, 2, 3]
    spool.keep_until(3)
    spool.append(record(5))
    Spool(tmp_path).keep_until(3)
    assert list(tmp_path.iterdir()) == []


def test_samples_have_a_bound_and_metrics_have_not(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    big = Record("samples", 1, 1, {"rows": ["x" * (11 << 20)]})
    assert [spool.append(big) for _ in range(5)] == [True, True, True, False, False]
    assert spool.append(record(2))
    for _ in range(3):
        spool.forget_first()
    assert taken(spool) == [2]


def test_a_disk_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    assert not Spool(tmp_path / "no-such-folder").append(record(1))


def test_text_that_no_encoding_holds(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert spool.append(Record("samples", 1, 1, {"rows": [{"query": "half \ud83d, line\u2028end"}]}))
    found = Spool(tmp_path).first()
    assert found is not None
    assert found.body["rows"][0]["query"] == "half ?, line\u2028end"
    assert os.listdir(tmp_path) == ["mlflow_spool.jsonl"]
