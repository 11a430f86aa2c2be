"""What a run writes down: the run directory, MLflow, the terminal."""
