"""The four perspectives: what each reads, asks and how its answer becomes a score."""
