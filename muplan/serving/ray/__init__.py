"""The Ray backend: the workers of a plan as actors, on one host or on several."""
