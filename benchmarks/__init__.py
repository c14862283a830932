"""Benchmarks: each prints the table that docs/benchmarks.md shows."""
