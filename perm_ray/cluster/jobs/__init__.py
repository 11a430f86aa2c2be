"""Runs as jobs of a Ray cluster: what is sent (`package.py`) and whom one talks to (`client.py`)."""
