"""Configuration: typed sections and how they are loaded."""

from pathlib import Path

CONFIGS = Path(__file__).parent / "shipped"  # the configurations of `configs/`
