"""The command line: one short file per verb, and `main.py` that finds them."""

from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "config" / "shipped"
