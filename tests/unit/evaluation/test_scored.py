"""Scored files: rows, resuming, refusals; rewards of texts that no policy wrote; comparing two files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from perm_ray.cli.judging.score import MAX_FAILED_IN_A_ROW, Outage, check_paths, scored_row, show
from perm_ray.cli.main import call
from perm_ray.config.judges import JudgePoolConfig, ScoringConfig
from perm_ray.config.schema import Config
from perm_ray.config.training import RewardConfig
from perm_ray.data.items import make_scenario
from perm_ray.errors import DataError, JudgeFailureRateError
from perm_ray.evaluation.calibration.agreement import Bootstrap, agreement
from perm_ray.evaluation.calibration.comparison import compare_scored
from perm_ray.evaluation.scored import Setup, read_scored, resume, setup_of
from perm_ray.files import append_row, json_line
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, load_perspective
from perm_ray.rewards.reward import reward_of_asked
from perm_ray.types import JudgeItem, Judgment, Scale, Sections, Status

FOUR = {name: load_perspective(name) for name in BUILTIN_PERSPECTIVES}
CONFIG = Config()


def item(name: str, response: str = "I am here.", analysis: str | None = None) -> JudgeItem:
    return JudgeItem(name, make_scenario("Ana", "A day", "Well."), Sections(analysis, response))


def judged(each: JudgeItem, expression: float | None = 4.0) -> dict[str, Judgment]:
    scores = {"resonation": 3.0, "expression": expression, "reception": 2.0, "bystander": 80.0}
    found = {}
    for name, score in scores.items():
        if getattr(each.sections, FOUR[name].reads) is None:
            found[name] = Judgment(name, Status.SKIPPED)
        elif score is None:
            found[name] = Judgment(name, Status.FAILED, reason="timeout")
        else:
            found[name] = Judgment(name, Status.OK, score, reason=f"because {score}", judge="m")
    return found


def setup(config: Config = CONFIG, perspectives=FOUR) -> Setup:
    return setup_of(config, perspectives, {})


def row(each: JudgeItem, judgments: Mapping[str, Judgment] | None = None, made: Setup | None = None) -> str:
    judgments = judgments or judged(each)
    return json_line(scored_row(each, judgments, FOUR, CONFIG.rewards, {}, made or setup()))


# ---- rewards without a policy -----------------------------------------------------------------


def test_a_text_without_analysis_is_rewarded_without_resonation() -> None:
    reward, why, asked = reward_of_asked(judged(item("a")), FOUR, RewardConfig())
    assert asked == ("expression", "reception", "bystander")
    assert why == ""
    assert reward is not None
    assert reward.empathy == pytest.approx(2 / (5 / 4 + 5 / 2))
    assert reward.bystander == pytest.approx(-0.1)
    assert reward.length == 0.0


def test_a_text_with_analysis_has_all_perspectives_and_weights_of_the_asked_alone() -> None:
    config = RewardConfig(combine="mean", weights={"resonation": 2.0})
    whole, _, asked = reward_of_asked(judged(item("a", analysis="Torn.")), FOUR, config)
    assert asked == tuple(FOUR)
    assert whole is not None
    assert whole.empathy == pytest.approx((2 * 0.6 + 0.8 + 0.4) / 4)
    part, _, _ = reward_of_asked(judged(item("a")), FOUR, config)
    assert part is not None
    assert part.empathy == pytest.approx(0.6)


def test_a_failure_masks_and_nobody_to_ask_masks() -> None:
    reward, why, _ = reward_of_asked(judged(item("a"), expression=None), FOUR, RewardConfig())
    assert (reward, why) == (None, "expression is failed: timeout")
    outside = {"resonation": FOUR["resonation"], "bystander": FOUR["bystander"]}
    assert reward_of_asked(judged(item("a")), outside, RewardConfig()) == (
        *(None, "no empathy perspective could be asked"),
        ("bystander",),
    )


# ---- the file ---------------------------------------------------------------------------------


def test_a_row_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    first, second = item("a"), item("b", "Na\u00efve \u2028 \U0001f642", "Torn.")
    append_row(path, row(first))
    append_row(path, row(second, judged(second, expression=None)))
    one, other = read_scored(path)
    assert (one.item, other.item) == (first, second)
    assert one.scores == {"resonation": None, "expression": 4.0, "reception": 2.0, "bystander": 80.0}
    assert one.scales["bystander"] == Scale(0, 100)
    assert one.reasons["expression"] == "because 4.0"
    assert one.perspectives == ("expression", "reception", "bystander")
    assert one.reward == pytest.approx(2 / (5 / 4 + 5 / 2) - 0.1)
    assert other.reward is None
    assert one.setup == setup()


def test_rows_that_are_there_are_done_and_a_cut_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    items = [item("a"), item("b"), item("c")]
    assert resume(path, items, setup()) == set()
    whole = row(items[0]) + row(items[1])
    path.write_text(whole + row(items[2])[:60], encoding="utf-8")
    assert resume(path, items, setup()) == {"a", "b"}
    assert path.read_text(encoding="utf-8") == whole
    append_row(path, row(items[2]))
    assert resume(path, items, setup()) == {"a", "b", "c"}
    path.write_text('{"half', encoding="utf-8")
    assert resume(path, items, setup()) == set()
    assert path.read_bytes() == b""


def test_what_has_no_reward_can_be_judged_again_and_the_last_row_counts(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    items = [item("a"), item("b")]
    append_row(path, row(items[0]))
    append_row(path, row(items[1], judged(items[1], expression=None)))
    assert resume(path, items, setup()) == {"a", "b"}
    assert resume(path, items, setup(), again=True) == {"a"}
    append_row(path, row(items[1]))
    assert resume(path, items, setup(), again=True) == {"a", "b"}
    assert [each.reward is None for each in read_scored(path)] == [False, False]


def test_judges_that_are_gone_stop_the_verb() -> None:
    failed, fine = judged(item("a"), expression=None), judged(item("a"))
    outage = Outage()
    for _ in range(MAX_FAILED_IN_A_ROW - 1):
        outage.watch(failed)
    outage.watch(fine)
    for _ in range(MAX_FAILED_IN_A_ROW - 1):
        outage.watch(failed)
    with pytest.raises(JudgeFailureRateError, match=r"64 items in a row \(expression: timeout\)"):
        outage.watch(failed)


def test_another_judge_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    append_row(path, row(item("a")))
    pools = {
        **CONFIG.judges.pools,
        "expression": JudgePoolConfig(scoring=ScoringConfig("expected")),
    }
    other = replace(CONFIG, judges=replace(CONFIG.judges, pools=pools))
    with pytest.raises(DataError, match=r"begun with another judge of expression \(.*reasoned.*expected"):
        resume(path, [item("a")], setup(other))
    rubric = replace(FOUR["reception"].rubric, text="Another rubric.")
    changed = FOUR | {"reception": replace(FOUR["reception"], rubric=rubric)}  # type: ignore[type-var]
    with pytest.raises(DataError, match="begun with another judge of reception"):
        resume(path, [item("a")], setup(perspectives=changed))


@pytest.mark.parametrize(
    "change",
    [
        {"rewards": RewardConfig(bystander_coef=0.4)},
        {"run": replace(CONFIG.run, seed=1)},
    ],
)
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "out.jsonl"
    append_row(path, row(item("a")))
    with pytest.raises(DataError, match="begun with other judge or reward settings"):
        resume(path, [item("a")], setup(replace(CONFIG, **change)))


def test_what_changes_speed_alone_is_no_other_setup() -> None:
    engines = {name: replace(engine, replicas=3) for name, engine in CONFIG.judge_engines.items()}
    pools = {name: replace(pool, timeout_s=9.0) for name, pool in CONFIG.judges.pools.items()}
    faster = replace(CONFIG, models=engines, judges=replace(CONFIG.judges, pools=pools))
    assert setup(faster) == setup()
    trained = replace(CONFIG, rewards=RewardConfig(advantage_scaling="none", length_coef=0.1))
    assert setup(trained) == setup()


def test_another_text_under_the_same_id_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    append_row(path, row(item("a")))
    with pytest.raises(DataError, match="a row of a with another text"):
        resume(path, [item("a", "Something else.")], setup())


@pytest.mark.parametrize("line", ["{}", "[]", "nothing", '{"judgments": {"a": 1}, "setup": {}}'])
def test_a_file_that_is_something_else_is_refused_and_kept(tmp_path: Path, line: str) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(row(item("a")) + line + "\n", encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"out\.jsonl, line 2"):
        resume(path, [item("a")], setup())
    assert path.read_bytes() == before


def test_output_paths(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("{}\n")
    with pytest.raises(DataError, match="is the file to score"):
        check_paths(source, tmp_path / "." / "in.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        check_paths(source, tmp_path)
    check_paths(source, tmp_path / "new" / "out.jsonl")
    assert (tmp_path / "new").is_dir()


def test_the_summary_says_which_perspectives_entered(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    append_row(path, row(item("a")))
    append_row(path, row(item("b", analysis="Torn.")))
    console = Console(record=True, width=120)
    show(path, console)
    text = console.export_text()
    assert "2 rows in" in text
    assert "1 rewards are of expression, reception, bystander." in text


# ---- comparing --------------------------------------------------------------------------------


def scored(tmp_path: Path, name: str, scores: Mapping[str, float | None]) -> Path:
    path = tmp_path / name
    for key, score in scores.items():
        each = item(key, f"Reply {key}")
        append_row(path, row(each, judged(each, score)))
    return path


def test_two_judges_are_compared_on_what_both_scored(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    first = {f"i{n}": float(v) for n, v in enumerate(generator.uniform(1, 5, 30))}
    second: dict[str, float | None] = {key: min(5.0, value + 0.5) for key, value in first.items()}
    second["i0"], second["extra"] = None, 3.0
    a, b = scored(tmp_path, "a.jsonl", first), scored(tmp_path, "b.jsonl", second)
    quick = Bootstrap(num_resamples=100)
    report = compare_scored(read_scored(a), read_scored(b), quick, num_contrasts=3)
    assert (report.num_items, report.only_in) == (30, (0, 1))
    expression = report.perspectives["expression"]
    x = np.array([first[f"i{n}"] for n in range(1, 30)])
    y = np.array([second[f"i{n}"] for n in range(1, 30)], dtype=float)
    figures = agreement(x, y, Scale(1, 5), quick)
    assert expression.n == 29
    assert {n: f.value for n, f in expression.figures.items()} == pytest.approx(
        {n: f.value for n, f in figures.items()}
    )
    assert expression.mean_difference == pytest.approx(float((y - x).mean()))
    assert report.perspectives["resonation"].n == 0
    assert report.rewards.keys() == {"spearman", "kendall"}
    assert len(report.contrasts) == 3
    assert report.contrasts[0].share == pytest.approx(0.125)


def test_files_that_cannot_be_compared(tmp_path: Path) -> None:
    a, b = scored(tmp_path, "a.jsonl", {"x": 3.0}), scored(tmp_path, "b.jsonl", {"y": 3.0})
    with pytest.raises(DataError, match="no item in common"):
        compare_scored(read_scored(a), read_scored(b), Bootstrap())
    other = tmp_path / "c.jsonl"
    append_row(other, row(item("x", "Another text.")))
    with pytest.raises(DataError, match="x has another text in the second file"):
        compare_scored(read_scored(a), read_scored(other), Bootstrap())


def test_the_verb_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = scored(tmp_path, "a.jsonl", {f"i{n}": 1.0 + n % 4 for n in range(8)})
    b = scored(tmp_path, "b.jsonl", {f"i{n}": 1.0 + n % 3 for n in range(8)})
    files = [str(a), str(b)]
    assert call("judge compare", [*files, "--json", str(tmp_path / "report.json"), "--show", "1"]) == 0
    text = capsys.readouterr().out
    assert "8 items are in both" in text
    assert "expression: 4.00 and 1.00" in text
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["perspectives"]["expression"]["n"] == 8
    with pytest.raises(DataError, match="--show must be 0 or more"):
        call("judge compare", [str(a), str(b), "--show", "-1"])
