"""Load the templates of HTML pages. Texts of models and people go into them, so escaping is decided here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def page_template(file: Path, filters: Mapping[str, Callable[..., Any]]) -> Template:
    """Load the template `file`: everything is escaped, and a name without a value is an error."""
    environment = Environment(
        loader=FileSystemLoader(file.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(file.name)
