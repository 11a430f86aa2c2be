"""Measuring policies on scenarios they were not trained on, and judges on replies that people rated."""
