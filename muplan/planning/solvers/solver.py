"""What a solver is: a planning model in, a solution with its status and bound out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from muplan.plan import Status
from muplan.planning.stated.model import PlanningModel, Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a solver is with its present goal: incumbent, bound and the gap between them.

    Power is in watts (less what the served requests are worth, where energy per request is minimised),
    goodput in requests per second, a rate as a factor on the demand scaled to what no fleet can exceed.
    """

    incumbent: float
    bound: float
    gap: float
    phase: str


Report = Callable[[Progress], None]


class Solver(Protocol):
    """Solves a planning model.

    A solver is deterministic: equal model and seed give an equal solution. ``time_limit_s`` is a guard
    that an instance of the sizes muplan is made for does not reach. ``report`` is told of every better
    incumbent and bound; it changes no result.
    """

    def __call__(
        self, model: PlanningModel, *, time_limit_s: float, seed: int, report: Report | None = None
    ) -> Solution:
        """Solve ``model``; the status of the solution says how that ended."""
        ...


def no_solution(solver: str, status: Status, seed: int) -> Solution:
    """The solution that says there is none."""
    return Solution(solver=solver, status=status, achieved=(), power_w=float("nan"), uses=(), seed=seed)
