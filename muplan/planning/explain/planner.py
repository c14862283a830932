"""The planner as judge of feasibility: greedy, few rounds, no baselines; guard and simulation decide.

It says that there is a plan where it finds one, and else that it finds none, which is no proof.
"""

from __future__ import annotations

from muplan.planning.explain.feasibility import Answer
from muplan.planning.search.choice import choose
from muplan.planning.search.evaluation import Judge
from muplan.planning.search.search import Search
from muplan.planning.search.tuning import first_guard, tune
from muplan.planning.solvers.greedy import solve_greedy
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.problem.problem import Problem

_ROUNDS = 3
_MAX_EVALUATIONS = 6
_TIME_LIMIT_S = 20.0


def finds_plan(problem: Problem) -> Answer:
    """Whether the planner finds a plan with little effort."""
    builder = CandidateBuilder(problem)
    if builder.refusals():
        return Answer.INFEASIBLE
    search = Search(
        problem=problem,
        builder=builder,
        judge=Judge(problem, seed=0),
        solver=solve_greedy,
        max_evaluations=_MAX_EVALUATIONS,
        time_limit_s=_TIME_LIMIT_S,
        seed=0,
        tries_uniform=False,
    )
    tuning = tune(search, guard=first_guard(problem, builder), rounds=_ROUNDS)
    return Answer.INFEASIBLE if choose(search, tuning, None) is None else Answer.FEASIBLE
