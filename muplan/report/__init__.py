"""Summaries, tables and plots of profiles, plans and runs."""
