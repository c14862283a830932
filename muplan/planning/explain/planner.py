"""The planner as judge of feasibility: greedy, few rounds, no baselines; guard and simulation decide.

It says that there is a plan where it finds one, and else that it finds none, which is no proof.
"""

from __future__ import annotations

from muplan.planning.explain.feasibility import Answer
from muplan.planning.search.ascent import ascend
from muplan.planning.search.evaluation import Judge
from muplan.planning.search.search import Search
from muplan.planning.search.tuning import first_guard, tune
from muplan.planning.solvers.greedy import solve_greedy
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.problem.problem import Problem

_ROUNDS = 4
_MAX_EVALUATIONS = 10
_TIME_LIMIT_S = 20.0


def finds_plan(problem: Problem) -> Answer:
    """Whether the planner finds a plan with little effort."""
    if not problem.services:
        return Answer.FEASIBLE
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
    tried = [(trial.deployment, trial.evaluation) for trial in tuning.trials]
    if tried and not any(evaluation.holds() for _, evaluation in tried):
        nearest = min(tried, key=lambda item: item[1].shortfall())
        tried = [ascend(search, *nearest)]
    holding = (deployment for deployment, evaluation in tried if evaluation.holds())
    found = any(
        search.judge.meets_targets(deployment, search.judge.predict(deployment)) for deployment in holding
    )
    return Answer.FEASIBLE if found else Answer.INFEASIBLE
