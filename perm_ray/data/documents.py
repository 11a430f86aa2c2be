"""Read Markdown files with front matter, and their variants in other languages: prompts and perspectives.

    ---
    reads: response
    ---
    You judge how a supporter's reply speaks to a person in distress.

The variants of `warm.md` are the files `warm.<language>.md` beside it, such as `warm.pt-br.md`. A variant
may leave out any key of the front matter: it then has the value of the file that it is a variant of.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from perm_ray.errors import ConfigError

_FENCE = "---"


@dataclass(frozen=True, slots=True)
class Document:
    """A text with named values before it; `variants` has it in other languages, by lowercase BCP 47 tag."""

    front: Mapping[str, object]
    text: str
    variants: Mapping[str, Document] = field(default_factory=dict)

    def of(self, language: str | None) -> Document:
        """Return the document for a language tag: `pt-BR` takes `pt-br`, else `pt`, else this one."""
        tag = (language or "").lower()
        return self.variants.get(tag) or self.variants.get(tag.split("-")[0]) or self

    def digest(self, language: str | None = None) -> str:
        """Return 12 hexadecimal digits that name the document for `language`, front matter included."""
        chosen = self.of(language)
        content = json.dumps([dict(chosen.front), chosen.text], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def digest_of_all(self) -> str:
        """Return 12 hexadecimal digits that name the document and its variants together."""
        parts = [self.digest(), *(f"{tag} {self.digest(tag)}" for tag in sorted(self.variants))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def read_document(file: Path, key: str, defaults: Mapping[str, object] | None = None) -> Document:
    """Read a document and its variants.

    Args:
        file: The Markdown file.
        key: The configuration key that named it, for messages.
        defaults: Values of the front matter where the file does not give them.

    Raises:
        ConfigError: A file cannot be read, is not UTF-8, has no text or no valid front matter.
    """
    whole = _read(file, key, defaults or {})
    variants = {
        path.name[len(file.stem) + 1 : -len(file.suffix)].lower(): _read(path, key, whole.front)
        for path in sorted(file.parent.glob(f"{glob.escape(file.stem)}.*{file.suffix}"))
    }
    return Document(whole.front, whole.text, variants)


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace `{name}` by its value for each name of `values`; other braces stay as they are."""
    marks = re.compile(r"\{(" + "|".join(map(re.escape, values)) + r")\}")
    return marks.sub(lambda mark: values[mark[1]], template)


def _read(file: Path, key: str, defaults: Mapping[str, object]) -> Document:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"{key} must be a UTF-8 Markdown file that can be read, found {str(file)!r} ({why}): correct the "
            "path, or leave it null for the built-in one."
        ) from error
    front: object = {}
    if text.startswith(f"{_FENCE}\n"):
        head, end, body = text[len(_FENCE) + 1 :].partition(f"\n{_FENCE}\n")
        try:
            front = yaml.safe_load(head) if end else None
        except yaml.YAMLError:
            front = None
        if not isinstance(front, dict) or not all(isinstance(name, str) for name in front):
            raise ConfigError(
                f"{key} must be a file whose front matter (between two lines of ---) is YAML with keys, "
                f"found something else in {str(file)!r}: correct it, or remove it."
            )
        text = body
    if not text.strip():
        raise ConfigError(f"{key} must be a file with text in it, found {str(file)!r}, which is empty.")
    return Document({**defaults, **front}, text.strip())
