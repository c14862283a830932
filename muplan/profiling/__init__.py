"""Profilers: how long each part of a model takes, and what energy it uses, at each operating point."""
