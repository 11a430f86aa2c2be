"""What a model learns from: the prompts of training, the queries of judging, and targets over a scale."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perm_ray.config.judges import JudgePoolConfig, JudgesConfig, ScoringConfig
from perm_ray.data.items import make_scenario, read_examples
from perm_ray.data.prompts import build_prompts, load_template
from perm_ray.errors import ConfigError, DataError
from perm_ray.evaluation.calibration.labelled import Dimension, LabelledItem
from perm_ray.judges.engine import ValueTree, render_query
from perm_ray.judges.judge import question_of
from perm_ray.judges.perspective import load_perspective
from perm_ray.models.chat import ChatRenderer
from perm_ray.runs.examples import (
    batches_of,
    demonstration_units,
    heldout_scenarios,
)
from perm_ray.runs.rating_examples import rating_units, soft_target, target_sequences
from perm_ray.trainer.batching import TrainSequence
from perm_ray.types import JudgeItem, Scale, Sections

ONE_TO_FIVE = Scale(1, 5)


def item(name: str, response: str = "You can be both.", query: str = "I should be happy.") -> JudgeItem:
    scenario = make_scenario("Ana, 41, a nurse", "She was passed over.", query)
    return JudgeItem(name, scenario, Sections("She feels torn.", response))


@pytest.fixture(scope="module")
def renderer(tiny_model: Path) -> ChatRenderer:
    return ChatRenderer(tiny_model)


# ---- demonstrations -----------------------------------------------------------------------------


def test_a_demonstration_is_the_prompt_of_training_and_a_learned_answer(renderer: ChatRenderer) -> None:
    template = load_template(None)
    ((sequence,),) = demonstration_units([item("a")], template, "# Analysis\n", renderer, 3000, 4000)
    (prompt,) = build_prompts([item("a").scenario], template, "# Analysis\n", renderer, 3000)
    assert sequence.prompt_ids == prompt.token_ids
    answer = sequence.token_ids[sequence.prompt_length :]
    assert renderer.decode(answer) == "She feels torn.\n\n# Response\nYou can be both."
    assert answer[-1] == renderer.end_of_turn
    assert sequence.num_trained == len(answer)


def test_a_demonstration_that_the_prefix_does_not_begin_is_refused(renderer: ChatRenderer) -> None:
    with pytest.raises(ConfigError, match=r"prompt\.prefix must be a beginning"):
        demonstration_units([item("a")], load_template(None), "Dear", renderer, 3000, 4000)


def test_long_examples_are_named(renderer: ChatRenderer) -> None:
    with pytest.raises(DataError, match=r"may have 100 tokens \(finetune\.max_tokens\), but a has"):
        demonstration_units([item("a")], load_template(None), "", renderer, 3000, 100)


# ---- ratings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratings", "given_scale", "target"),
    [
        ([4.0], ONE_TO_FIVE, {4: 1.0}),
        ([4.0, 5.0], ONE_TO_FIVE, {4: 0.5, 5: 0.5}),
        ([2.5], ONE_TO_FIVE, {2: 0.5, 3: 0.5}),
        ([0.0, 3.0], Scale(0, 3), {1: 0.5, 5: 0.5}),
        ([1.0], Scale(0, 2), {3: 1.0}),
    ],
)
def test_soft_target(ratings: list[float], given_scale: Scale, target: dict[int, float]) -> None:
    assert soft_target(ratings, given_scale, ONE_TO_FIVE) == pytest.approx(target)


def tree_of_twenty() -> ValueTree:
    """0 to 20, a token for each digit: 1 and 2 end, and go on."""
    root = ValueTree({})
    for value in range(21):
        node = root
        for digit in map(int, str(value)):
            node = node.children.setdefault(digit, ValueTree({}))
        node.value = value
    return root


@given(
    st.dictionaries(st.integers(0, 20), st.floats(0.05, 1), min_size=1, max_size=4),
    st.lists(st.floats(-3, 3), min_size=33, max_size=33),
)
def test_the_loss_of_the_sequences_is_the_cross_entropy_over_the_numbers(
    weights: dict[int, float], logits: list[float]
) -> None:
    tree, end = tree_of_twenty(), 99
    target = {value: weight / sum(weights.values()) for value, weight in weights.items()}
    # The model's log-probabilities: at each branch over its children, and of ending where a number ends.
    given, spare = {}, iter(logits)
    for path, node in tree.branches():
        tokens = [*node.children, *([end] if node.value is not None else [])]
        raw = {token: next(spare, 0.3) for token in tokens}
        total = math.log(sum(map(math.exp, raw.values())))
        given[path] = {token: value - total for token, value in raw.items()}
    numbers = tree.logprobs([given[path] for path, _ in tree.branches()])
    loss = 0.0
    prompt = (7, 7)
    for sequence in target_sequences(prompt, tree, target, end):
        assert sequence.token_ids[:2] == prompt
        places = [place for place, trained in enumerate(sequence.trained) if trained]
        for place, candidates in zip(places, sequence.soft_targets, strict=True):
            path = sequence.token_ids[2:place]
            loss -= sum(weight * given[path][token] for token, weight in candidates)
    expected = -sum(probability * numbers[value] for value, probability in target.items())
    assert loss == pytest.approx(expected, abs=1e-9)


def test_a_rating_is_the_very_query_of_expected_mode(renderer: ChatRenderer) -> None:
    pools = JudgesConfig(pools={"expression": JudgePoolConfig(scoring=ScoringConfig(mode="expected"))})
    perspective = load_perspective("expression")
    rows = [
        LabelledItem(item("a"), {"warmth": {"ana": 4.0, "ben": 5.0}}),
        LabelledItem(item("b", "At least you have work."), {"warmth": {"ana": 1.0}}),
    ]
    dimensions = [Dimension("warmth", ONE_TO_FIVE, "expression")]
    (unit,) = rating_units(rows, dimensions, pools, {"expression": perspective}, renderer, "3", 8000)
    assert len(unit) == 2
    for row, sequence in zip(rows, unit, strict=True):
        text = row.item.sections.response or ""
        question = question_of(perspective, pools.pools["expression"], row.item.scenario, text, 3)
        query = render_query(renderer, question.messages, question.opening)
        assert sequence.token_ids[:-1] == query
        assert sequence.trained.index(True) == len(query)
    digits = {renderer.encode(str(value))[0]: value for value in ONE_TO_FIVE.values}
    assert [(digits[token], q) for token, q in unit[0].soft_targets[0]] == [(4, 0.5), (5, 0.5)]
    # Rubric and scenario are computed once; the two replies are not shared.
    assert unit[0].prompt_ids == unit[1].prompt_ids
    shared = renderer.decode(unit[0].prompt_ids)
    assert "She was passed over." in shared
    assert "both" not in shared


def test_a_criterion_is_drawn_and_asked_for_itself(renderer: ChatRenderer) -> None:
    perspective = load_perspective("bystander")
    labels = {f"bystander.{name}": {"ana": 18.0} for name in perspective.criteria}
    dimensions = [Dimension(name, Scale(0, 20), None) for name in labels]
    judges = JudgesConfig(pools={"bystander": JudgePoolConfig(scoring=ScoringConfig(mode="expected"))})
    rows = [LabelledItem(item("a"), labels)]
    drawn = set()
    for epoch in range(40):
        (unit,) = rating_units(
            rows, dimensions, judges, {"bystander": perspective}, renderer, f"{epoch}", 8000
        )
        (sequence,) = unit
        criterion, colon, score = renderer.decode(sequence.token_ids).splitlines()[-1].partition(": ")
        assert (colon, score) == (": ", "18")
        drawn.add(criterion.lower())
        weights = [weight for candidates in sequence.soft_targets for _, weight in candidates]
        assert weights == pytest.approx([1.0, 1.0])
    assert drawn == set(perspective.criteria)


# ---- both ---------------------------------------------------------------------------------------


def test_every_epoch_has_every_example_in_another_order() -> None:
    def unit(token: int) -> tuple[TrainSequence, ...]:
        return (TrainSequence((token, 1), (False, True), (0.0,), 0.0),)

    units = [unit(token) for token in range(10)]
    batches = batches_of([units, units], batch_size=4, seed=1)
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    first, second = ([s.token_ids[0] for batch in half for s in batch] for half in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert batches == batches_of([units, units], batch_size=4, seed=1)


def test_scenarios_are_held_out_whole() -> None:
    scenarios = [item("x", query=f"Query {n}").scenario for n in range(10)] * 2
    heldout = heldout_scenarios(scenarios, {}, 0.2, seed=0)
    assert len(heldout) == 2
    assert heldout == heldout_scenarios(scenarios, {}, 0.2, seed=0)
    said = {scenarios[0].scenario_id: "heldout", scenarios[1].scenario_id: "train"}
    assert heldout_scenarios(scenarios, said, 0.2, seed=0) == {scenarios[0].scenario_id}
    with pytest.raises(DataError, match="one scenario only"):
        heldout_scenarios(scenarios[:1] * 3, {}, 0.2, seed=0)


def test_a_scenario_in_both_splits_is_listed(tmp_path: Path) -> None:
    row = '{"persona": "Ana", "scenario": "Lost.", "query": "Why?", "response": "R%d", "split": "%s"}'
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([row % (1, "train"), row % (2, "heldout"), row % (3, "later")]))
    with pytest.raises(DataError, match=r"(?s)line 2, field split: expected train.*line 3, field split"):
        read_examples(file)
