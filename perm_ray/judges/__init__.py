"""The judge actors, one pool of them per perspective, and the panel of all pools."""
