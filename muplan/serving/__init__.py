"""Serving: pure policies, latency tables, the compiled simulator, metrics and the simulated run."""
