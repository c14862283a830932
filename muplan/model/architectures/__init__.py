"""Graphs of model families, built from the keys of a `transformers` configuration."""
