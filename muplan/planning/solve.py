"""`solve`: from a problem to a plan, or to the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from muplan.plan import (
    Baseline,
    Deployment,
    MarginalValue,
    Prediction,
    Reason,
    SolutionSummary,
    Status,
    WhatIf,
)
from muplan.planning.baselines.panel import baseline_panel, short_panel
from muplan.planning.deploy import parked_gpus
from muplan.planning.explain.conflict import Conflict, fallen_short, find_conflict
from muplan.planning.explain.reasons import explain
from muplan.planning.explain.what_ifs import marginal_values, what_ifs
from muplan.planning.methods.catalog import METHODS
from muplan.planning.methods.name import MethodName
from muplan.planning.methods.outcome import Found, Missed, Outcome
from muplan.planning.methods.placed import find_uniform_clock
from muplan.planning.methods.rate import Raised, raise_rate
from muplan.planning.search.evaluation import Judge
from muplan.planning.search.progress import Report, Step, silent
from muplan.planning.search.search import LEAST_EVALUATIONS, Search
from muplan.planning.search.tuning import Tuning, first_guard, make_model
from muplan.planning.solvers.exact import model_text
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.problem.problem import Problem
from muplan.workload import Goal, parse_goals

_MAX_EVALUATIONS = 30
"""Simulated deployments of one descent or ascent: fewer where the fleet takes millions of requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan was found; status is OPTIMAL or FEASIBLE (for the stated model).

    It is made for ``demand_factor`` times the demand, where the highest rate is a goal.
    """

    status: Status
    deployment: Deployment
    parked: tuple[str, ...]
    solution: SolutionSummary
    prediction: Prediction
    baselines: tuple[Baseline, ...]
    reasons: tuple[Reason, ...]
    marginal_values: tuple[MarginalValue, ...] = ()
    what_ifs: tuple[WhatIf, ...] = ()
    demand_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """No plan was found; status is INFEASIBLE, or TIME_LIMIT where the solver ran out of time."""

    status: Status
    conflict: Conflict


PlanningResult = Planned | Refused


def solve(
    problem: Problem,
    *,
    solver: MethodName | str = MethodName.EXACT,
    objective: Sequence[Goal] = (),
    time_limit_s: float = 60.0,
    seed: int = 0,
    with_baselines: bool = True,
    report: Report = silent,
) -> PlanningResult:
    """Plan a problem.

    Parameters
    ----------
    solver
        The planning method, by name.
    objective
        Goals in place of the workload's.
    time_limit_s
        Guard on each run of the solver.
    seed
        Of solver and traces. Equal problem, options and seed give an equal result.
    with_baselines
        Whether to search the baselines, and to start from the best deployment under one clock too. Where
        requests are so many that a search affords few simulations, they are not, and the panel says so.
    report
        Is told where the search stands.
    """
    search = make_search(
        with_objective(problem, objective),
        solver=MethodName(solver),
        time_limit_s=time_limit_s,
        seed=seed,
        tries_uniform=with_baselines,
        report=report,
    )
    choose = partial(choose_deployment, method=MethodName(solver))
    if Goal.RATE in search.problem.workload.goals:
        return _planned_at_rate(raise_rate(search, choose), with_baselines)
    return _result(search, choose(search), with_baselines)


def make_search(
    problem: Problem,
    *,
    solver: MethodName,
    time_limit_s: float,
    seed: int,
    tries_uniform: bool,
    report: Report = silent,
) -> Search:
    """What a method needs to plan a problem: candidates, judge, solver, and what may be spent."""
    report(Step(phase="building candidates"))
    judge = Judge(problem, seed=seed)
    evaluations = judge.affordable(_MAX_EVALUATIONS, least=LEAST_EVALUATIONS)
    search = Search(
        problem=problem,
        builder=CandidateBuilder(problem),
        judge=judge,
        solver=METHODS[solver].solver,
        max_evaluations=evaluations,
        time_limit_s=time_limit_s,
        seed=seed,
        report=report,
    )
    return replace(search, tries_uniform=tries_uniform and search.affords_more)


def choose_deployment(search: Search, method: MethodName) -> Outcome:
    """Let a method choose, unless a service cannot be served at all."""
    if search.builder.refusals():
        tuning = Tuning(last_guard=first_guard(search.problem, search.builder))
        return Missed(status=Status.INFEASIBLE, tuning=tuning)
    return METHODS[method].choose(search)


def write_program(problem: Problem, *, objective: Sequence[Goal] = ()) -> str:
    """The first planning model of a problem as the text of an LP file, before any simulation."""
    problem = with_objective(problem, objective)
    builder = CandidateBuilder(problem)
    return model_text(make_model(problem, builder, first_guard(problem, builder)))


def with_objective(problem: Problem, objective: Sequence[Goal]) -> Problem:
    """The problem with other goals; as it is where there are none."""
    if not objective or tuple(objective) == problem.workload.objective:
        return problem
    update = {"objective": parse_goals(tuple(objective))}
    return replace(problem, workload=problem.workload.model_copy(update=update))


def _result(search: Search, outcome: Outcome, with_baselines: bool) -> PlanningResult:
    if isinstance(outcome, Missed):
        return Refused(status=outcome.status, conflict=_conflict(search, outcome))
    return make_planned(search, outcome, with_baselines=with_baselines)


def _planned_at_rate(raised: Raised, with_baselines: bool) -> PlanningResult:
    """The plan at the highest rate that holds, which says so of itself first."""
    result = _result(raised.search, raised.outcome, with_baselines)
    if isinstance(result, Refused) or raised.achieved is None:
        return result
    achieved = (raised.achieved, *result.solution.achieved)
    return replace(
        result,
        solution=result.solution.model_copy(update={"achieved": achieved}),
        demand_factor=raised.factor,
    )


def _conflict(search: Search, missed: Missed) -> Conflict:
    """Why there is no plan: what is wrong with the method's one deployment, or what the fleet cannot do."""
    if missed.faults:
        return fallen_short(missed.faults, "Let another method plan: --solver exact.")
    search.tell("finding what conflicts")
    return find_conflict(search.problem, search.builder, missed.tuning)


def make_planned(search: Search, found: Found, *, with_baselines: bool) -> Planned:
    """The result of a method's choice: explained, and held against the baselines."""
    search.tell("explaining")
    values = marginal_values(found.model)
    changes = what_ifs(search, found.guard) if found.guard is not None and search.affords_more else ()
    reasons = explain(
        search.problem,
        search.builder,
        search.judge,
        values,
        changes,
        found.deployment,
        found.evaluation,
    )
    panel = _panel(search, found, searched=with_baselines)
    return Planned(
        status=found.summary.status,
        deployment=found.deployment,
        parked=parked_gpus(search.problem, found.deployment),
        solution=found.summary,
        prediction=found.prediction,
        baselines=panel,
        reasons=(*reasons, *found.notes),
        marginal_values=values,
        what_ifs=changes,
    )


def _panel(search: Search, found: Found, *, searched: bool) -> tuple[Baseline, ...]:
    """The baselines of a plan; one clock for all is looked for where the method has not done so."""
    if not searched or not search.affords_more:
        return short_panel(search.problem, search.judge, found.deployment, found.prediction)
    uniform = found.uniform or find_uniform_clock(search)[0]
    return baseline_panel(search, found.deployment, found.prediction, uniform)
