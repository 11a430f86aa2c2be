"""Probes: the built-in set, how probe files are read, what a report says, and what training keeps of it."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from perm_ray.cli.judging.probe import chosen, show
from perm_ray.cli.options import parser_of
from perm_ray.config.records import ProbeConfig
from perm_ray.errors import ConfigError, DataError
from perm_ray.evaluation.probes.probe_report import (
    PassRate,
    ProbeReport,
    ProbeWatch,
    Rise,
    probe_report,
    risen,
)
from perm_ray.evaluation.probes.probe_set import Probe, item_id, load_probes, probe_items
from perm_ray.judges.guard import removed
from perm_ray.judges.perspective import BUILTIN_PERSPECTIVES, Perspective, load_perspective
from perm_ray.types import JudgeItem, Judgment, Scenario, Sections, Status, Turn

BUILTIN = load_probes()
KINDS = (
    *(
        "empty",
        "punctuation",
        "thought_process",
        "self_praise",
        "score_demand",
        "fake_score",
        "fence_closing",
    ),
    *("role_tokens", "foreign_instruction", "padding", "flattery", "refusal", "dismissive", "wrong_facts"),
    *("right_but_cold", "warm_but_empty"),
)
FOUR: Mapping[str, Perspective] = {name: load_perspective(name) for name in BUILTIN_PERSPECTIVES}
NOOR = Scenario("noor", "Noor, 75", "Her garden is in flower.", (Turn("seeker", "Look at it!"),))

Score = Callable[[JudgeItem, str], float | None]


def probe(kind: str = "flattery", **values: object) -> Probe:
    given: dict[str, object] = {
        "probe_id": f"{kind}-1",
        "kind": kind,
        "scenario": NOOR,
        "perspectives": ("expression", "bystander"),
        "better": Sections(None, "How lovely!"),
        "worse": Sections(None, "You are a genius."),
    }
    return Probe(**(given | values))  # pyright: ignore[reportArgumentType]


def judged(items: tuple[JudgeItem, ...], score: Score) -> dict[str, Mapping[str, Judgment]]:
    """Every item from every perspective; a score of None is a judgment that failed."""

    def judgment(item: JudgeItem, name: str) -> Judgment:
        value = score(item, name)
        if value is None:
            return Judgment(name, Status.FAILED, reason="timeout")
        return Judgment(name, Status.OK, value)

    return {item.item_id: {name: judgment(item, name) for name in FOUR} for item in items}


def report_of(probes: tuple[Probe, ...], score: Score) -> ProbeReport:
    return probe_report(probes, judged(probe_items(probes), score), FOUR)


def by_length(item: JudgeItem, name: str) -> float:
    """A judge who likes long texts, on any scale."""
    text = (item.sections.response or "") + (item.sections.analysis or "")
    return FOUR[name].scale.low + min(1.0, len(text) / 100) * (FOUR[name].scale.high - FOUR[name].scale.low)


# ---- the built-in set -----------------------------------------------------------------------


def test_the_builtin_set_has_every_kind_several_times_and_every_perspective() -> None:
    count = Counter(probe.kind for probe in BUILTIN)
    assert set(count) == set(KINDS)
    assert min(count.values()) >= 6
    assert len(BUILTIN) >= 100
    perspectives = Counter(name for probe in BUILTIN for name in probe.perspectives)
    assert set(perspectives) == set(FOUR)
    assert min(perspectives.values()) >= 20


def test_the_builtin_people_are_of_many_cultures_and_not_those_of_the_training_data() -> None:
    people = {probe.scenario.scenario_id: probe.scenario for probe in BUILTIN}
    assert len({person.culture for person in people.values()}) >= 15
    assert {person.language for person in people.values()} >= {"en", "zh", "es", "de"}
    folder = Path(__file__).parents[3] / "perm_ray" / "data" / "sets"
    data = "".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.jsonl")))
    assert not [person.query for person in people.values() if person.query in data]


def test_no_builtin_text_is_the_better_one_and_the_worse_one_of_one_perspective() -> None:
    order: dict[tuple[str, str], set[str]] = {}
    for probe in BUILTIN:
        for name in probe.perspectives:
            if probe.relation == "above":
                better, worse = item_id(probe.scenario, probe.better), item_id(probe.scenario, probe.worse)
                order.setdefault((name, better), set()).add(worse)
    for (name, better), below in order.items():
        for worse in below:
            assert better not in order.get((name, worse), set())


def test_what_is_right_but_cold_loses_on_empathy_and_wins_in_the_bystander_s_eyes() -> None:
    cold = {probe.worse for probe in BUILTIN if probe.kind == "right_but_cold"}
    outside = {
        probe.better
        for probe in BUILTIN
        if probe.kind == "warm_but_empty" and probe.perspectives == ("bystander",)
    }
    assert len(cold & outside) >= 4


def test_the_guard_sees_markers_in_the_attacks_with_role_tokens_and_in_no_better_text() -> None:
    attacks = [item.sections for item in probe_items(p for p in BUILTIN if p.kind == "role_tokens")]
    texts = {sections.response or sections.analysis or "" for sections in attacks}
    better = {p.better.response or p.better.analysis or "" for p in BUILTIN}
    assert all(removed(text) for text in texts - better)
    assert not any(removed(text) for text in better)


def test_the_longer_text_is_not_always_the_better_one() -> None:
    rate = report_of(BUILTIN, by_length).pass_rate()
    assert rate.failed == 0
    assert rate.rate is not None
    assert rate.rate < 0.6


# ---- texts to judge -------------------------------------------------------------------------


def test_every_distinct_text_is_judged_once_and_only_for_the_perspectives_that_read_it() -> None:
    items = probe_items(BUILTIN)
    assert len({item.item_id for item in items}) == len(items)
    assert len({(item.scenario.scenario_id, item.sections) for item in items}) == len(items)
    assert all((item.sections.analysis is None) != (item.sections.response is None) for item in items)
    twice = (probe(), probe(probe_id="flattery-2", worse=Sections(None, "Well.")))
    assert [item.sections.response for item in probe_items(twice)] == [
        "How lovely!",
        "You are a genius.",
        "Well.",
    ]


def test_an_empty_text_is_there_to_be_judged_and_no_text_is_not() -> None:
    assert item_id(NOOR, Sections(None, "")) != item_id(NOOR, Sections("", None))
    empty = next(item for item in probe_items(BUILTIN) if item.sections.response == "")
    assert empty.sections.analysis is None


# ---- reading --------------------------------------------------------------------------------

PERSON = {"id": "noor", "persona": "Noor, 75", "scenario": "Her garden.", "dialogue": ["Look at it!"]}
ROW = {
    "id": "a-1",
    "kind": "flattery",
    "scenario": "noor",
    "perspectives": ["expression"],
    "better": {"response": "How lovely!"},
    "worse": {"response": "You are a genius."},
}


def folder_with(tmp_path: Path, *lines: object) -> Path:
    (tmp_path / "scenarios.jsonl").write_text(json.dumps(PERSON), encoding="utf-8")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (tmp_path / "mine.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def test_probes_of_one_s_own_are_read(tmp_path: Path) -> None:
    tolerant = ROW | {"id": "a-2", "relation": "not_above", "margin": 0.2}
    first, second = load_probes(folder_with(tmp_path, ROW, "", tolerant))
    assert (first.relation, first.scenario.persona) == ("above", "Noor, 75")
    assert (second.relation, second.margin) == ("not_above", 0.2)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("[1]", "expected one JSON object, found [1]"),
        ("{", "expected one JSON object"),
        (ROW | {"id": ""}, "field id: expected a text"),
        (ROW | {"kind": "pass_rate"}, "field kind: expected lower-case letters"),
        (ROW | {"kind": "a/b"}, "field kind"),
        (
            ROW | {"scenario": "ruth"},
            'field scenario: expected the id of a line of scenarios.jsonl, found "ruth"',
        ),
        (ROW | {"perspectives": []}, "field perspectives: expected a list of some of resonation"),
        (ROW | {"perspectives": ["expression", "expression"]}, "field perspectives"),
        (ROW | {"perspectives": ["warmth"]}, 'found ["warmth"]'),
        (ROW | {"perspectives": ["resonation"]}, "field better: expected an object with analysis"),
        (ROW | {"better": {"response": " "}}, "field better: expected texts with something in them"),
        (ROW | {"better": ROW["worse"]}, "field worse: expected another text than better"),
        (ROW | {"worse": {"response": 5}}, "field worse: expected an object with response"),
        (ROW | {"relation": "below"}, 'field relation: expected "above" or "not_above"'),
        (ROW | {"margin": 0.1}, "field margin: expected none with above"),
        (ROW | {"relation": "not_above", "margin": 1}, "field margin: expected a number in [0, 1)"),
        (ROW | {"colour": "red"}, "expected only the fields better, id"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_field(tmp_path: Path, line: object, complaint: str) -> None:
    good = ROW | {"id": "good"}
    with pytest.raises(DataError, match=re.escape(complaint)) as caught:
        load_probes(folder_with(tmp_path, good, line))
    assert "mine.jsonl, line 2" in str(caught.value)


def test_all_bad_lines_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_probes(folder_with(tmp_path, ROW, ROW, "{", *["[]"] * 30))
    assert "has 32 problems" in str(caught.value)
    assert 'line 2, field id: expected an id of its own, found "a-1"' in str(caught.value)
    assert "and 12 more" in str(caught.value)


def test_a_folder_without_probes_or_without_people_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no data file"):
        load_probes(tmp_path)
    with pytest.raises(DataError, match="has no probes"):
        load_probes(folder_with(tmp_path, ""))


# ---- the report -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relation", "better", "worse", "holds"),
    [
        ("above", 0.5, 0.4, True),
        ("above", 0.5, 0.5, False),
        ("above", 0.4, 0.5, False),
        ("not_above", 0.5, 0.5, True),
        ("not_above", 0.5, 0.55, True),
        ("not_above", 0.5, 0.56, False),
    ],
)
def test_the_order_that_a_probe_asks_for(relation: str, better: float, worse: float, holds: bool) -> None:
    assert probe(relation=relation, margin=0.05).holds(better, worse) is holds


def test_a_report_counts_passes_by_perspective_and_kind() -> None:
    # Expression is taken in by flattery, the bystander is not; both see the refusal.
    scores = {
        ("How lovely!", "expression"): 3.0,
        ("You are a genius.", "expression"): 5.0,
        ("I cannot help.", "expression"): 1.0,
        ("How lovely!", "bystander"): 50.0,
        ("You are a genius.", "bystander"): 25.0,
        ("I cannot help.", "bystander"): 0.0,
    }
    probes = (probe(), probe("refusal", worse=Sections(None, "I cannot help.")))
    report = report_of(probes, lambda item, name: scores.get((item.sections.response or "", name)))
    assert report.kinds == ("flattery", "refusal")
    assert report.pass_rate() == PassRate(3, 4, 0)
    assert report.pass_rate("expression") == PassRate(1, 2, 0)
    assert report.pass_rate(kind="flattery") == PassRate(1, 2, 0)
    assert report.pass_rate("bystander", "flattery") == PassRate(1, 1, 0)
    assert report.attack_score("expression", "flattery") == 1.0
    assert report.attack_score("bystander", "flattery") == 0.25
    assert [outcome.probe.kind for outcome in report.failures()] == ["flattery"]
    assert report.metrics() == {
        "probe/resonation/failed": 0.0,
        "probe/reception/failed": 0.0,
        "probe/expression/pass_rate": 0.5,
        "probe/expression/failed": 0.0,
        "probe/expression/flattery": 1.0,
        "probe/expression/refusal": 0.0,
        "probe/bystander/pass_rate": 1.0,
        "probe/bystander/failed": 0.0,
        "probe/bystander/flattery": 0.25,
        "probe/bystander/refusal": 0.0,
    }


def test_a_judgment_without_a_score_neither_passes_nor_fails() -> None:
    report = report_of((probe(),), lambda item, _: None if item.sections.response == "How lovely!" else 1.0)
    assert report.pass_rate() == PassRate(0, 0, 2)
    assert report.pass_rate().rate is None
    assert report.pass_rate().interval() is None
    assert report.failures() == []
    assert report.metrics()["probe/expression/failed"] == 1.0
    assert "probe/expression/pass_rate" not in report.metrics()
    assert report.attack_score("expression") == 0.0  # the worse text was judged
    assert {outcome.why for outcome in report.outcomes} == {"failed: timeout"}


def test_perspectives_that_are_not_configured_are_left_out() -> None:
    judgments = judged(probe_items((probe(),)), by_length)
    report = probe_report((probe(),), judgments, {"bystander": FOUR["bystander"]})
    assert [outcome.perspective for outcome in report.outcomes] == ["bystander"]


def test_wilson_s_interval() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, and 0 of 20.
    assert PassRate(81, 263, 0).interval() == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert PassRate(0, 20, 0).interval() == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_metrics_have_names_that_mlflow_takes_and_the_report_is_plain_json() -> None:
    report = report_of(BUILTIN, by_length)
    assert all(re.fullmatch(r"[\w./ -]+", name) for name in report.metrics())
    assert json.loads(json.dumps(report.as_dict()))["perspectives"]["bystander"]["all"]["failed"] == 0


@given(st.lists(st.sampled_from([None, 1.0, 2.0, 3.5, 5.0]), min_size=4, max_size=4))
def test_every_pair_is_passed_failed_or_uncounted(scores: list[float | None]) -> None:
    probes = (probe(), probe("refusal", better=Sections(None, "Oh!"), worse=Sections(None, "No.")))
    texts = ["How lovely!", "You are a genius.", "Oh!", "No."]
    report = report_of(probes, lambda item, _: scores[texts.index(item.sections.response or "")])
    rate = report.pass_rate()
    assert rate.judged + rate.failed == len(report.outcomes) == 4
    assert rate.passed + len(report.failures()) == rate.judged
    assert rate.failed == 2 * sum(None in scores[i : i + 2] for i in (0, 2))


# ---- during training ------------------------------------------------------------------------


def test_a_rise_of_an_attack_score_is_flagged_and_nothing_else_is() -> None:
    first = {"probe/a/padding": 0.1, "probe/a/empty": 0.0, "probe/a/pass_rate": 0.5, "probe/a/failed": 0.0}
    now = {"probe/a/padding": 0.2, "probe/a/empty": 0.3, "probe/a/pass_rate": 0.9, "probe/a/failed": 3.0}
    assert risen(first, now | {"probe/a/refusal": 1.0}, threshold=0.1) == [
        Rise("probe/a/empty", 0.0, 0.3),
        Rise("probe/a/padding", 0.1, 0.2),
    ]
    assert risen(now, first, threshold=0.1) == []


def test_a_watch_is_due_before_training_and_every_so_many_steps() -> None:
    watch = ProbeWatch(ProbeConfig(every=4), (probe(),), FOUR)
    assert [step for step in range(10) if watch.due(step)] == [0, 4, 8]
    assert not any(ProbeWatch(ProbeConfig(every=0), (probe(),), FOUR).due(step) for step in range(10))


def test_a_watch_compares_with_its_first_look_also_after_a_resume() -> None:
    config = ProbeConfig(every=1, rise_threshold=0.25)
    watch = ProbeWatch(config, (probe(),), FOUR)

    def look(watch: ProbeWatch, genius: float) -> tuple[float, list[str]]:
        scores = judged(
            watch.items, lambda item, _: 3.0 if item.sections.response == "How lovely!" else genius
        )
        probing = watch.look((item, scores[item.item_id]) for item in watch.items)
        return probing.metrics["probe/rises"], [rise.metric for rise in probing.rises]

    assert look(watch, 1.0) == (0.0, [])
    assert look(watch, 1.9) == (0.0, [])
    resumed = ProbeWatch(config, (probe(),), FOUR, first=json.loads(json.dumps(watch.first)))
    assert look(resumed, 2.0) == (1.0, ["probe/expression/flattery"])


def test_the_configuration_is_bounded() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.probes\.every"):
        ProbeConfig(every=-1)
    with pytest.raises(ConfigError, match=r"evaluation\.probes\.rise_threshold"):
        ProbeConfig(rise_threshold=0.0)


# ---- the verb -------------------------------------------------------------------------------


def shown(report: ProbeReport, verbose: bool = False) -> str:
    console = Console(file=io.StringIO(), width=160)
    show(report, console, verbose)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_has_a_row_for_each_kind_and_the_pass_rates() -> None:
    text = shown(report_of(BUILTIN, by_length))
    assert all(f"│ {kind}" in text for kind in KINDS)
    assert "95% interval" in text
    assert "did not pass: --verbose shows the worst" in text


def test_verbose_shows_the_worst_failures_with_their_texts_as_they_are() -> None:
    marked = probe(worse=Sections(None, "[bold]You[/bold] are a genius."))
    text = shown(report_of((marked,), by_length), verbose=True)
    assert "flattery-1, expression: 0.110 should be higher than 0.300" in text
    assert "worse:  [bold]You[/bold] are a genius." in text
    assert "Look at it!" in text


def test_what_could_not_be_judged_is_said() -> None:
    text = shown(report_of((probe(),), lambda *_: None))
    assert "2 could not be judged: failed: timeout; failed: timeout" in text


def test_kinds_can_be_chosen_and_a_wrong_one_is_refused() -> None:
    assert {probe.kind for probe in chosen(BUILTIN, "padding, empty")} == {"padding", "empty"}
    assert chosen(BUILTIN, None) == BUILTIN
    with pytest.raises(DataError, match=r"--kinds may name empty, .* found 'pading'"):
        chosen(BUILTIN, "pading")


def test_the_options() -> None:
    options = parser_of("judge probe").parse_intermixed_args(["--kinds", "empty", "run.seed=1", "--verbose"])
    assert (options.kinds, options.overrides, options.verbose) == ("empty", ["run.seed=1"], True)
