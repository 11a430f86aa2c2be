"""Configuration: typed sections and how they are loaded."""
