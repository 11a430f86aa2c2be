"""The command line: one short file per verb, and `cli.py` that finds them."""
