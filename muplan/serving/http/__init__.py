"""Execution on servers that are deployed already: requests go out over HTTP, and answers are timed."""
