"""Simulation in the loop: tune the guard, lower and raise deployments, choose and judge one."""
