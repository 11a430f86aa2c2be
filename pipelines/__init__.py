"""The command line: one short file per verb, and `cli.py` that finds them."""

from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
