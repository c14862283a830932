"""The highest rate: the largest multiple of the whole demand at which a method finds a plan that holds.

The stated model says where to begin; from there the multiple is bracketed by planning, simulation and
judgement included. Everything else a method decides at that demand as at any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from muplan.plan import GoalSummary
from muplan.planning.methods.outcome import Found, Outcome, goal_summary
from muplan.planning.search.evaluation import Judge
from muplan.planning.search.search import Search
from muplan.planning.search.tuning import first_guard, make_model
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.model import Achieved, PlanningModel
from muplan.workload import Goal

_ATTEMPTS = 8
_STEP = 1.15
_CLOSE = 1.01
"""Two multiples, one of which holds and one of which does not, are near enough at this ratio."""
_EVALUATIONS = 8
"""Simulated deployments of a descent or ascent while the multiple is sought."""

Choose = Callable[[Search], Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """The search at the highest multiple of the demand that held, and what was chosen there.

    Where none held, the outcome at the lowest that was tried, without anything achieved.
    """

    factor: float
    search: Search
    outcome: Outcome
    achieved: GoalSummary | None


def raise_rate(search: Search, choose: Choose) -> Raised:
    """Find the highest multiple of the demand at which ``choose`` finds a plan, and that plan."""
    if search.builder.refusals():
        return Raised(factor=1.0, search=search, outcome=choose(search), achieved=None)
    first = make_model(search.problem, search.builder, first_guard(search.problem, search.builder))
    factor = _highest(search, first).value
    low, high = 0.0, math.inf
    best: Raised | None = None
    for _ in range(_ATTEMPTS):
        quick = _scaled(search.within(f"{factor:.3g} × the demand"), factor)
        quick = replace(quick, max_evaluations=_EVALUATIONS, tries_uniform=False)
        tried = Raised(factor=factor, search=quick, outcome=choose(quick), achieved=None)
        if isinstance(tried.outcome, Found):
            low, best = factor, tried
        else:
            high = factor
            best = best or tried
        if high <= low * _CLOSE:
            break
        factor = _next(low, high)
    return _settled(search, best or tried, choose)


def _next(low: float, high: float) -> float:
    if low == 0.0:
        return high / _STEP
    return low * _STEP if math.isinf(high) else math.sqrt(low * high)


def _settled(search: Search, best: Raised, choose: Choose) -> Raised:
    """The plan at the multiple that held, with all that may be spent; else the one found first."""
    if not isinstance(best.outcome, Found):
        return best
    scaled = _scaled(search, best.factor)
    outcome = choose(scaled)
    if not isinstance(outcome, Found):
        scaled, outcome = best.search, best.outcome
    stated = _highest(scaled, outcome.model)
    achieved = goal_summary(Goal.RATE, stated.value * best.factor, stated.bound * best.factor)
    return Raised(factor=best.factor, search=scaled, outcome=outcome, achieved=achieved)


def _highest(search: Search, model: PlanningModel) -> Achieved:
    """The highest factor on a model's demand; 1, and without a bound, where its solver finds none."""
    solution = search.solved(replace(model, goals=(Goal.RATE,)))
    return solution.achieved[0] if solution.found else Achieved(goal=Goal.RATE, value=1.0, bound=1.0)


def _scaled(search: Search, factor: float) -> Search:
    problem = search.problem.scaled(factor)
    return replace(
        search, problem=problem, builder=CandidateBuilder(problem), judge=Judge(problem, seed=search.seed)
    )
