"""Read items that a model is tested with, and that need no judge: `builtin:truth`, and EmoBench.

An item has choices, of which one is right, or rules that the model's own answer has to keep. `sets/TRUTH.md`
is the data card of the first; EmoBench (arXiv 2402.12071) is read from the user's own copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from perm_ray.data.tables import Problems, Row, json_rows
from perm_ray.errors import DataError

TRUTH = "builtin:truth"
_TRUTH_FILE = Path(__file__).parent / "sets" / "truth.jsonl"
_ASKED = {
    "en": "Which of these is right? Answer with its number alone.",
    "zh": "下面哪一项是对的？只回答编号。",
}
_REPLY = "A person writes to an assistant:\n\n{}\n\nWhich reply should the assistant send?"
_EMOBENCH = {  # the questions in words of ours
    ("en", "emotion"): "What does {} feel in the end?",
    ("en", "cause"): "Why does {} feel so?",
    ("en", "Response"): "What should {} best say?",
    ("en", "Action"): "What should {} best do?",
    ("zh", "emotion"): "{}最后的感受是什么？",
    ("zh", "cause"): "{}为什么会有这种感受？",
    ("zh", "Response"): "{}最好怎么回应？",
    ("zh", "Action"): "{}最好怎么做？",
}


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    """One question of a benchmark to a model.

    Args:
        item_id: Several parts of one item share it; the item is right when all of them are.
        part: The measure that it counts for, such as `facts`; `whole` is that of the item.
        whole: See `part`.
        tags: Slices, such as `language/en`.
        question: With choices, the question before them; else what a person says to the model.
        choices: Texts, `answer` the index of the right one; empty where rules decide.
        answer: See `choices`.
        must: Patterns that an answer has to have, every one of them.
        must_not: Patterns that it must not have.
    """

    item_id: str
    part: str
    whole: str
    tags: tuple[str, ...]
    question: str
    choices: tuple[str, ...] = ()
    answer: int = 0
    must: tuple[re.Pattern[str], ...] = ()
    must_not: tuple[re.Pattern[str], ...] = ()

    @property
    def chance(self) -> float:
        """Return the probability that a guess is right."""
        return 1 / len(self.choices) if self.choices else 0.0

    def contents(self) -> str:
        """Return all that an answer depends on, as text."""
        rules = [each.pattern for each in (*self.must, *self.must_not)]
        return repr(
            (self.item_id, self.part, self.question, self.choices, self.answer, len(self.must), rules)
        )

    def keeps_rules(self, text: str) -> bool:
        """Return whether an answer has everything that it must, and nothing that it must not."""
        found = all(pattern.search(text) for pattern in self.must)
        return found and not any(pattern.search(text) for pattern in self.must_not)


def read_truth(source: str = TRUTH) -> list[BenchmarkItem]:
    """Return the items of `builtin:truth`, or of a file of the user's in the same form.

    Raises:
        DataError: It lists every problem.
    """
    path = _TRUTH_FILE if source == TRUTH else Path(source).expanduser()
    return _read(path, _truth_item)


def read_emobench(folder: Path) -> list[BenchmarkItem]:
    """Return EmoBench's items (EA.jsonl and EU.jsonl): application, and understanding in two parts.

    Raises:
        DataError: The folder is not EmoBench's, or it lists every problem.
    """
    missing = [name for name in ("EA.jsonl", "EU.jsonl") if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} must hold EmoBench's EA.jsonl and EU.jsonl, found no {missing[0]}: give the folder "
            "`data` of a clone of github.com/Sahandfer/EmoBench."
        )
    application = _read(folder / "EA.jsonl", _emobench_application)
    return application + _read(folder / "EU.jsonl", _emobench_understanding)


def _read(path: Path, items_of: Callable[[Row], list[BenchmarkItem]]) -> list[BenchmarkItem]:
    problems = Problems()
    items = [item for row in json_rows(path, problems) for item in items_of(row)]
    lines: dict[tuple[str, str], BenchmarkItem] = {}
    for item in items:
        if lines.setdefault((item.item_id, item.part), item) is not item:
            problems.note(path, 0, "id", "an id of its own", item.item_id)
    problems.settle(path)
    if not items:
        raise DataError(f"{path} must hold one item a line, found none: give another file.")
    return items


def _truth_item(row: Row) -> list[BenchmarkItem]:
    name, category, query = row.text("id"), row.text("category"), row.text("query")
    tags = (f"language/{row.optional_text('language') or 'en'}",)
    if "choices" not in row.data:
        must, must_not = _patterns(row, "must"), _patterns(row, "must_not")
        if not must:
            row.complain("must", "a list of regular expressions, or choices", row.data.get("must"))
        return [
            BenchmarkItem(name, category, "all items", tags, query, must=must, must_not=must_not),
        ]
    choices, answer = _texts(row, "choices"), row.data.get("answer")
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        row.complain("answer", "the index of the right choice", answer)
        answer = 0
    question = f"{_REPLY.format(query)} {_ASKED['en']}"
    return [BenchmarkItem(name, category, "all items", tags, question, choices, answer)]


def _emobench_application(row: Row) -> list[BenchmarkItem]:
    language, kind = row.text("language"), row.text("question type")
    tags = (f"language/{language}", f"category/{row.text('category')}")
    return _emobench_item(row, f"EA/{language}/{row.text('qid')}", "EA", "EA", tags, kind, "choices", "label")


def _emobench_understanding(row: Row) -> list[BenchmarkItem]:
    language = row.text("language")
    name = f"EU/{language}/{row.text('qid')}"
    tags = (f"language/{language}", f"category/{row.text('coarse_category')}")
    found = []
    for kind in ("emotion", "cause"):
        fields = f"{kind}_choices", f"{kind}_label"
        found += _emobench_item(row, name, f"EU {kind}", "EU", tags, kind, *fields)
    return found


def _emobench_item(
    row: Row, name: str, part: str, whole: str, tags: tuple[str, ...], kind: str, choices: str, label: str
) -> list[BenchmarkItem]:
    language, subject = row.text("language"), row.text("subject")
    asked = _EMOBENCH.get((language, kind))
    if asked is None:
        row.complain("language", "en or zh, and a known type of question", f"{language}, {kind}")
        return []
    texts, right = _texts(row, choices), row.text(label)
    if right not in texts:
        row.complain(label, f"one of {choices}", right)
        return []
    question = f"{row.text('scenario')}\n\n{asked.format(subject)} {_ASKED[language]}"
    return [BenchmarkItem(name, part, whole, tags, question, texts, texts.index(right))]


def _texts(row: Row, field: str) -> tuple[str, ...]:
    given = row.data.get(field)
    if not isinstance(given, list) or len(given) < 2 or len(given) > 9:
        row.complain(field, "a list of 2 to 9 texts", given)
        return ("", "")
    return tuple(row.as_text(f"{field}[{index}]", each) for index, each in enumerate(given))


def _patterns(row: Row, field: str) -> tuple[re.Pattern[str], ...]:
    given: object = row.data.get(field) or []
    found = []
    for each in given if isinstance(given, Sequence) and not isinstance(given, str) else [None]:
        try:
            found.append(re.compile(str(each) if isinstance(each, str) else "(", re.IGNORECASE))
        except re.error as error:
            row.complain(field, f"regular expressions ({error})", each)
    return tuple(found)
