"""Solvers of the stated model: exact, greedy, each with a bound."""
