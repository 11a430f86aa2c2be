"""Measuring a policy on scenarios it was not trained on."""
