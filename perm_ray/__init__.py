"""perm_ray: distributed RL that makes language models empathetic, after PERM (arXiv 2601.10532)."""

__version__ = "0.1.0"
