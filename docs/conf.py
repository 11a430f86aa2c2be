"""Build the pages of this folder into a searchable site: `make docs`. They are plain Markdown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

project, author, copyright = "perm_ray", "The perm_ray authors", "The perm_ray authors, Apache-2.0"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "perm_ray"
root_doc = "index"
exclude_patterns = ["generate.py"]
myst_heading_anchors = 3
highlight_language = "text"
suppress_warnings = ["misc.highlighting_failure"]

_HERE = Path(__file__).parent
_TREE = """
```{{toctree}}
:hidden:
:caption: {caption}
:glob:

{folder}/*
```
"""
_FOLDERS = {
    "Tutorials": "tutorials",
    "How to": "how-to",
    "Reference": "reference",
    "Explanation": "explanation",
}
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)([^)#]+)(#[^)]*)?\)")


def _read(_: Any, name: str, source: list[str]) -> None:
    """Give the first page its table of contents, and show links to files beside this folder as plain text."""
    page = _HERE / f"{name}.md"

    def inside(link: re.Match[str]) -> str:
        target = (page.parent / link[2]).resolve()
        return link[0] if target.is_relative_to(_HERE) else link[1]

    source[0] = _LINK.sub(inside, source[0])
    if name == root_doc:
        source[0] += "".join(_TREE.format(caption=c, folder=f) for c, f in _FOLDERS.items())


def setup(app: Any) -> None:
    """Have Sphinx call `_read` for every page."""
    app.connect("source-read", _read)
