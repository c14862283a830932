"""From a problem to a plan: candidates, queueing guard, solvers, bounds and baselines."""
