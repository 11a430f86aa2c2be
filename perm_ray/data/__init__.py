"""Scenarios, their order, and how one becomes a prompt."""
