"""The command line: one short file per verb, and `main.py` that finds them."""
