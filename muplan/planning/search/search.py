"""What every search of one problem shares."""

from __future__ import annotations

from dataclasses import dataclass, replace

from muplan.planning.guard.levels import GuardState
from muplan.planning.search.evaluation import Judge
from muplan.planning.search.progress import Report, Step, silent
from muplan.planning.solvers.solver import Progress, Solver
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.model import PlanningModel, Solution
from muplan.problem.problem import Problem
from muplan.workload import Goal

LEAST_EVALUATIONS = 2
"""Simulations of a descent, however many requests each takes."""
_WIDE_EVALUATIONS, _WIDEST = 5, 32_768
"""Simulations that a search must afford, and pairs of GPU and service at most, for searches beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A problem with its candidates, judge and solver, and what may be spent.

    Parameters
    ----------
    max_evaluations
        Simulated deployments of one descent or ascent, where the requests of each do not forbid it.
    time_limit_s
        Guard on each run of the solver.
    tries_uniform
        Whether the search also starts from the best deployment under one clock.
    guard
        Where tuning begins, taught by another search; the closed forms alone where absent.
    report
        Is told where the search stands.
    scope
        What this search is part of, for the report.
    """

    problem: Problem
    builder: CandidateBuilder
    judge: Judge
    solver: Solver
    max_evaluations: int
    time_limit_s: float
    seed: int
    tries_uniform: bool = False
    guard: GuardState | None = None
    report: Report = silent
    scope: tuple[str, ...] = ()

    @property
    def goals(self) -> tuple[Goal, ...]:
        """What is optimised under simulation, in order; a rate is settled before."""
        return tuple(goal for goal in self.problem.workload.goals if goal is not Goal.RATE)

    @property
    def affordable_evaluations(self) -> int:
        """Simulated deployments of one descent or ascent on the training traces there are now."""
        return self.judge.affordable(self.max_evaluations, least=min(self.max_evaluations, LEAST_EVALUATIONS))

    @property
    def affords_more(self) -> bool:
        """Whether the fleet is small enough for more than the plan: placements, baselines, what-ifs."""
        pairs = self.problem.workload.fleet.num_gpus * len(self.problem.services)
        return self.max_evaluations >= _WIDE_EVALUATIONS and pairs <= _WIDEST

    def within(self, part: str) -> Search:
        """The same search, reporting as a part of itself."""
        return replace(self, scope=(*self.scope, part))

    def tell(self, phase: str, *, number: int = 0, total: int = 0, solver: Progress | None = None) -> None:
        """Report a step; parameters as those of `Step`."""
        self.report(Step(phase=phase, scope=self.scope, number=number, total=total, solver=solver))

    def solved(self, model: PlanningModel, *, number: int = 0, total: int = 0) -> Solution:
        """Solve a stated model, reporting as round ``number`` of ``total``."""

        def tell(progress: Progress) -> None:
            self.tell("solving", number=number, total=total, solver=progress)

        self.tell("solving", number=number, total=total)
        return self.solver(model, time_limit_s=self.time_limit_s, seed=self.seed, report=tell)
