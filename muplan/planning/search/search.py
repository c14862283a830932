"""What every search of one problem shares."""

from __future__ import annotations

from dataclasses import dataclass

from muplan.planning.search.evaluation import Judge
from muplan.planning.solvers.solver import Solver
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.problem.problem import Problem
from muplan.workload import Goal


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A problem with its candidates, judge and solver, and what may be spent.

    Parameters
    ----------
    max_evaluations
        Simulated deployments of one descent or ascent.
    time_limit_s
        Guard on each run of the solver.
    tries_uniform
        Whether the search also starts from the best deployment under one clock.
    """

    problem: Problem
    builder: CandidateBuilder
    judge: Judge
    solver: Solver
    max_evaluations: int
    time_limit_s: float
    seed: int
    tries_uniform: bool = False

    @property
    def goal(self) -> Goal:
        """What is optimised."""
        return self.problem.workload.objective
