"""Cells of an ablation: what a file and a grid give, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from perm_ray.config import CONFIGS
from perm_ray.config.load import dump_config, load_config
from perm_ray.errors import ConfigError
from perm_ray.runs.ablation import check_cells, grid, read_ablation


def written(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


def test_the_shipped_ablations_are_configurations_that_differ() -> None:
    found = read_ablation(CONFIGS / "ablations.yaml", [])
    assert len(found.cells) == 3 * len({cell.variant for cell in found.cells})
    configs = [load_config(found.base, cell.overrides) for cell in found.cells if cell.seed == 42]
    assert all(one != other for i, one in enumerate(configs) for other in configs[:i])


def test_a_file_gives_a_cell_for_each_variant_and_seed(tmp_path: Path) -> None:
    file = written(tmp_path, "base: local\nseeds: [1, 2]\nvariants: {plain: [], 'a/b': [run.steps=3]}\n")
    found = read_ablation(file, ["trainer.lr=1e-5"])
    assert [cell.name for cell in found.cells] == ["plain-seed1", "plain-seed2", "a-b-seed1", "a-b-seed2"]
    assert found.config().trainer.lr == 1e-5
    overrides = found.overrides(found.cells[2], tmp_path)
    assert overrides[:2] == ["trainer.lr=1e-5", "run.steps=3"]
    assert load_config(found.base, overrides).run.name == "a-b-seed1"


def test_a_grid_gives_every_combination() -> None:
    found = grid("local", ["trainer.lr=1e-6,1e-5", "run.steps=2,3"], [7], [])
    assert [cell.overrides for cell in found.cells] == [
        ("trainer.lr=1e-6", "run.steps=2"),
        ("trainer.lr=1e-6", "run.steps=3"),
        ("trainer.lr=1e-5", "run.steps=2"),
        ("trainer.lr=1e-5", "run.steps=3"),
    ]
    with pytest.raises(ConfigError, match=r"--grid expects a\.b=c,d"):
        grid("local", ["trainer.lr"], [7], [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("variants: [", "cannot be read as YAML"),
        ("[1]", "must have the keys base, seeds, variants"),
        ("variants: {a: []}\nseed: 3", "must have the keys"),
        ("variants: {a: []}\nseeds: [x]", "seeds in .* must be a list of whole numbers"),
        ("variants: {}", "must be names with lists of overrides"),
        ("variants: {a: run.steps=3}", "a in .* must be a list of overrides"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_ablation(written(tmp_path, text), [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("variants: {bad: [trainer.lrr=1]}", "bad: Unknown key trainer.lrr"),
        ("variants: {a b: [], a-b: []}", "found two a-b-seed42"),
    ],
)
def test_a_cell_that_could_not_start_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_cells(read_ablation(written(tmp_path, text), []), tmp_path)


def test_a_cell_that_was_begun_with_other_settings_is_refused(tmp_path: Path) -> None:
    found = grid("local", ["run.steps=2"], [7], [])
    (cell,) = found.cells
    run = tmp_path / "cells" / cell.name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(load_config("local", found.overrides(cell, tmp_path))))
    check_cells(found, tmp_path)
    (run / "config.yaml").write_text("run: {steps: 3}")
    with pytest.raises(ConfigError, match="begun with other settings"):
        check_cells(found, tmp_path)
