"""Verbs of `perm-ray judge`, a file each."""
