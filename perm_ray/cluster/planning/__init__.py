"""Compute the memory that a configuration takes, by arithmetic alone: nothing is loaded or started."""
