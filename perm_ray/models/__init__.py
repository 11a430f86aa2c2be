"""vLLM in the process, and the models it loads."""
