"""Execution in real time: the simulator's policies decide, a backend computes."""
