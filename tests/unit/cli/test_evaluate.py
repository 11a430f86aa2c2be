"""What is wrong in an evaluation or an ablation is said in one sentence, before any engine starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from perm_ray.cli.main import run_verb

MODEL = "builtin:supporter"


@pytest.mark.parametrize(
    ("verb", "arguments", "said"),
    [
        ("evaluate truth", [MODEL, "--limit", "-3"], "--limit must be 2 or more, found -3"),
        ("evaluate truth", ["run.seed=1"], "A model must be named"),
        ("evaluate truth", [MODEL, "--data", "no.jsonl"], "There is no file no.jsonl"),
        ("evaluate truth", [MODEL, "--limit", "2", "--out", "file"], "--out must be a folder"),
        ("evaluate emobench", [MODEL], "--data must be EmoBench's folder"),
        ("evaluate emobench", [MODEL, "--data", "."], "found no EA.jsonl"),
        ("evaluate compare", [MODEL], "needs 2 models and 2 scenarios or more, found 1 and 32"),
        ("evaluate compare", [MODEL, MODEL, "--judge", "nobody"], "--judge must be one of models (judge)"),
        (
            "evaluate eqbench3",
            [MODEL, "--eqbench-dir", "."],
            "must be a clone of github.com/EQ-bench/eqbench3",
        ),
        ("ablate", [], "Variants must be given by one file, or by --grid"),
        ("ablate", ["--grid", "run.steps=2", "--seeds", "x"], "--seeds must be whole numbers"),
        ("ablate", ["--grid", "run.steps=x"], "run.steps must be a whole number"),
        ("ablate", ["--grid", "run.steps=2", "--out", "file"], "--out must be a folder"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(
    verb: str,
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert run_verb(verb, arguments) == 2
    told = capsys.readouterr().err.strip()
    assert said in told
    assert "\n" not in told
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
