"""Fakes and the tiny model, shipped for tests of logic."""
