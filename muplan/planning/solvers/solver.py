"""What a solver is: a planning model in, a solution with its status and bound out."""

from __future__ import annotations

from typing import Protocol

from muplan.plan import Status
from muplan.planning.stated.model import PlanningModel, Solution


class Solver(Protocol):
    """Solves a planning model.

    A solver is deterministic: equal model and seed give an equal solution. ``time_limit_s`` is a guard
    that an instance of the sizes muplan is made for does not reach.
    """

    def __call__(self, model: PlanningModel, *, time_limit_s: float, seed: int) -> Solution:
        """Solve ``model``; the status of the solution says how that ended."""
        ...


def no_solution(solver: str, status: Status, seed: int) -> Solution:
    """The solution that says there is none."""
    nan = float("nan")
    return Solution(solver=solver, status=status, objective=nan, bound=nan, power_w=nan, uses=(), seed=seed)
