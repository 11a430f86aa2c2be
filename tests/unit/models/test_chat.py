"""Chat templates: ours are rendered by transformers; here is what is added to it, and proof of the ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from perm_ray.data.prompts import split_sections
from perm_ray.models.chat import ChatRenderer
from perm_ray.types import Message
from tests.support.tiny_model import write_tiny_model

CHAT = (Message("system", "Be kind."), Message("user", "Hello"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("chat") / "model")


def with_template(model: Path, folder: Path, template: str) -> Path:
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def text_of(folder: Path, prefix: str = "", enable_thinking: bool | None = None) -> str:
    renderer = ChatRenderer(folder, enable_thinking)
    return renderer.decode(renderer.render(CHAT, prefix))


def test_a_template_that_prints_the_date_prints_a_fixed_one(model: Path, tmp_path: Path) -> None:
    folder = with_template(model, tmp_path / "dated", "{{ strftime_now('%d %b %Y') }} {{ date_string }}")
    assert text_of(folder) == "01 Jan 2026 01 Jan 2026"


def test_an_opened_thought_is_closed_before_a_prefix(model: Path, tmp_path: Path) -> None:
    folder = with_template(model, tmp_path / "thinking", "{{ messages[-1].content }}<think>\n")
    assert text_of(folder) == "Hello<think>"  # Jinja drops the last line break
    assert text_of(folder, "# Analysis\n") == "Hello<think>\n</think>\n\n# Analysis\n"


def test_thinking_can_be_turned_off_by_key(model: Path, tmp_path: Path) -> None:
    template = "{% if enable_thinking is defined %}{{ enable_thinking }}{% else %}unset{% endif %}"
    folder = with_template(model, tmp_path / "key", template)
    assert [text_of(folder), text_of(folder, "", False), text_of(folder, "", True)] == [
        "unset",
        "False",
        "True",
    ]


def test_begin_of_text_may_be_defined_in_the_special_tokens_map_alone(model: Path, tmp_path: Path) -> None:
    folder = with_template(model, tmp_path / "bos", "{{ bos_token }}{{ messages[-1].content }}")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {name: config.pop(name) for name in list(config) if name.endswith("_token")}
    begin = tokens.get("bos_token") or tokens["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": begin, "eos_token": begin}))
    renderer = ChatRenderer(folder)
    name = begin if isinstance(begin, str) else begin["content"]
    assert renderer.render(CHAT) == renderer.encode(f"{name}Hello")
    assert renderer.render(CHAT)[0] != renderer.encode("Hello")[0]


@pytest.mark.parametrize(
    ("text", "response"),
    [
        ("<think># Response\nnot this</think># Analysis\nx\n# Response\nthis", "this"),
        ("# Response\nnot this</think># Analysis\nx\n# Response\nthis", "this"),
        ("<think># Analysis\nx\n# Response\nnot this", None),
        ("# Analysis\nx\n# Response\n\u200b\u200b", None),
        ("# Analysis\nx\n# Response\n---", None),
        ("# Analysis\nx\n# Response\n❤", "❤"),
    ],
)
def test_what_a_reader_does_not_see_is_no_response(text: str, response: str | None) -> None:
    assert split_sections(text).response == response
