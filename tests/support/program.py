"""What a test gives the programs that it starts."""

from __future__ import annotations

import os


def environment() -> dict[str, str]:
    """Return this process's environment without its Ray token: a program must make its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
