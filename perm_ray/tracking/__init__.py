"""Record a run: the run directory, MLflow, the terminal."""
