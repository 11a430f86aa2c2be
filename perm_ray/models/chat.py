"""Render chats as a model's own chat template and tokenizer have them, with transformers.

Every prompt is made here, the policy's and the judges'. Importing transformers' fast tokenizer takes a
second and loads no torch, so that a driver can check every prompt before anything heavy starts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from perm_ray.errors import ModelError
from perm_ray.types import Message

# Templates that print the date would make another prompt each day, of the same scenario.
TEMPLATE_DATE = datetime(2026, 1, 1)
_UNCLOSED_THOUGHT = re.compile(r"<think(?:ing)?>(?:(?!</think(?:ing)?>).)*\Z", re.DOTALL)
_CLOSE_THOUGHT = "\n</think>\n\n"
_ANY_CHAT = (Message("system", "."), Message("user", "."))


class ChatRenderer:
    """The chat template and the tokenizer of a model folder.

    Args:
        model_dir: A folder with `tokenizer.json` and a chat template.
        enable_thinking: Passed to the template, for models that can think first; None leaves it out.

    Raises:
        ModelError: The folder has no fast tokenizer or no chat template.
    """

    def __init__(self, model_dir: Path, enable_thinking: bool | None = None) -> None:
        self._model_dir = model_dir
        self._options = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._tokenizer = _load_tokenizer(model_dir)
        self._backend = self._tokenizer.backend_tokenizer
        # Files may carry both from training; either would change a prompt without a word.
        self._backend.no_truncation()
        self._backend.no_padding()
        added = self._backend.get_added_tokens_decoder().values()
        special = sorted((token.content for token in added if token.special), key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, special))) if special else None
        try:
            self.render(_ANY_CHAT)
        except ModelError as error:  # one that only refuses this chat may take another
            if isinstance(error.__cause__, jinja2.TemplateSyntaxError):
                raise ModelError(f"The chat template of {model_dir} is not valid Jinja: {error}") from error

    def render(self, messages: Sequence[Message], prefix: str = "") -> tuple[int, ...]:
        """Return the token ids of a chat up to the opening of the assistant's turn, then `prefix`.

        A template that opens a thought for the assistant would swallow a prefix: the thought is closed.

        Raises:
            ModelError: The template refuses the messages.
        """
        chat = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(
                chat,
                add_generation_prompt=True,
                tokenize=False,
                strftime_now=TEMPLATE_DATE.strftime,
                date_string=TEMPLATE_DATE.strftime("%d %b %Y"),
                **self._options,
            )
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            raise ModelError(
                f"The chat template of {self._model_dir} refuses a system and a user message ({error}): use "
                "a model whose template takes both."
            ) from error
        if prefix and _UNCLOSED_THOUGHT.search(str(text)):
            text = f"{text}{_CLOSE_THOUGHT}"
        return self.encode(f"{text}{prefix}")

    @property
    def end_of_turn(self) -> int:
        """Return the token that ends an answer, at which sampling stops."""
        return int(self._tokenizer.eos_token_id)

    def without_special_tokens(self, text: str) -> str:
        """Return `text` with a space for each token that the tokenizer treats as special."""
        while self._special_pattern and self._special_pattern.search(text):
            text = self._special_pattern.sub(" ", text)  # again: what was taken out may have split another
        return text

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of `text` as it stands; a chat template has written every special token itself."""
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`, without special tokens."""
        return self._backend.decode(list(token_ids), skip_special_tokens=True)


def _load_tokenizer(model_dir: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (model_dir / name).is_file():
            raise ModelError(
                f"The model folder {model_dir} has no {name}: give a complete one, with a fast tokenizer."
            )
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    except Exception as error:  # the library raises whatever a broken file makes it raise
        raise ModelError(
            f"The tokenizer of {model_dir} cannot be read ({type(error).__name__}: {error}): give the folder "
            "that `save_pretrained` wrote."
        ) from error
    if tokenizer.chat_template is None:
        raise ModelError(
            f"The model in {model_dir} has no chat template (neither chat_template.jinja nor chat_template "
            "in tokenizer_config.json): use an instruction-tuned model or add the file."
        )
    return tokenizer
