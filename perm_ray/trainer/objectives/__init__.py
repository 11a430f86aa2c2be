"""Objectives of the trainer: one file each, behind the seam in `learner.py`."""
