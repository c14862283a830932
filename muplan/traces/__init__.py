"""Traces of requests: drawn from demands, read from files, described; and how long requests are."""
