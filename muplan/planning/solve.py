"""`solve`: from a problem to a plan, or to the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from muplan.plan import Baseline, Deployment, Prediction, Reason, SolutionSummary, Status
from muplan.planning.baselines.oracle import oracle_power_w
from muplan.planning.baselines.panel import Uniform, baseline_panel, best_uniform_clock
from muplan.planning.deploy import parked_gpus
from muplan.planning.explain.conflict import Conflict, find_conflict
from muplan.planning.explain.reasons import explain
from muplan.planning.guard.levels import GuardState
from muplan.planning.search.choice import Chosen, choose
from muplan.planning.search.evaluation import Judge
from muplan.planning.search.search import Search
from muplan.planning.search.tuning import Tuning, first_guard, make_model, tune
from muplan.planning.solvers.exact import RELATIVE_GAP, model_text, solve_exact
from muplan.planning.solvers.greedy import solve_greedy
from muplan.planning.solvers.solver import Solver
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.model import PlanningModel
from muplan.problem.problem import Problem
from muplan.workload import Goal

_NODES_PER_ROUND, _STEPS_PER_ROUND = 200, 6
"""Of one run of the exact solver: simulation corrects the model by more than the gap this leaves."""

SOLVERS: dict[str, Solver] = {
    "exact": partial(solve_exact, max_nodes=_NODES_PER_ROUND, max_steps=_STEPS_PER_ROUND),
    "exact-cbc": partial(solve_exact, backend="cbc"),
    "greedy": solve_greedy,
}

_ROUNDS = {Goal.POWER: 5, Goal.GOODPUT: 10}
"""For goodput more: every round admits other shares, which moves the guard again."""
_LAST_ROUNDS = 2
_MAX_EVALUATIONS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan was found; status is OPTIMAL or FEASIBLE (for the stated model)."""

    status: Status
    deployment: Deployment
    parked: tuple[str, ...]
    solution: SolutionSummary
    prediction: Prediction
    baselines: tuple[Baseline, ...]
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """No plan was found; status is INFEASIBLE, or TIME_LIMIT where the solver ran out of time."""

    status: Status
    conflict: Conflict


PlanningResult = Planned | Refused


def solve(
    problem: Problem,
    *,
    solver: Literal["exact", "exact-cbc", "greedy"] = "exact",
    objective: Goal | None = None,
    time_limit_s: float = 60.0,
    seed: int = 0,
    with_baselines: bool = True,
) -> PlanningResult:
    """Plan a problem.

    The queueing guard is corrected by simulation on training traces over a bounded number of rounds;
    the best deployment that holds there is lowered under simulation, and judged on held-apart traces.

    Parameters
    ----------
    solver
        ``exact`` (HiGHS), ``exact-cbc``, or ``greedy``.
    objective
        In place of the workload's.
    time_limit_s
        Guard on each run of the solver.
    seed
        Of solver and traces. Equal problem, options and seed give an equal result.
    with_baselines
        Whether to make the baseline panel.
    """
    problem = _with_objective(problem, objective)
    builder = CandidateBuilder(problem)
    judge = Judge(problem, seed=seed)
    search = Search(
        problem=problem,
        builder=builder,
        judge=judge,
        solver=SOLVERS[solver],
        max_evaluations=_MAX_EVALUATIONS,
        time_limit_s=time_limit_s,
        seed=seed,
    )
    if builder.refusals():
        return Refused(
            status=Status.INFEASIBLE,
            conflict=find_conflict(problem, builder, Tuning(last_guard=first_guard(problem, builder))),
        )
    tuning = tune(search, guard=first_guard(problem, builder), rounds=_ROUNDS[search.goal])
    uniform = None
    if with_baselines:
        uniform = best_uniform_clock(search, _learnt(tuning, problem.workload.objective))
    if uniform is not None and uniform.trial is not None:
        # What one clock for all taught the guard serves the full model too.
        tuning.trials += tune(search, guard=uniform.trial.guard, rounds=_LAST_ROUNDS).trials
    chosen = choose(search, tuning, uniform)
    if chosen is None:
        timed_out = (
            tuning.unsolved is not None and tuning.unsolved.status is Status.TIME_LIMIT and not tuning.trials
        )
        status = Status.TIME_LIMIT if timed_out else Status.INFEASIBLE
        return Refused(status=status, conflict=find_conflict(problem, builder, tuning))
    return _planned(search, tuning, chosen, uniform, with_baselines)


def write_program(problem: Problem, *, objective: Goal | None = None) -> str:
    """The first planning model of a problem as the text of an LP file, before any simulation."""
    problem = _with_objective(problem, objective)
    builder = CandidateBuilder(problem)
    return model_text(make_model(problem, builder, first_guard(problem, builder)))


def _with_objective(problem: Problem, objective: Goal | None) -> Problem:
    if objective is None or objective is problem.workload.objective:
        return problem
    return replace(problem, workload=problem.workload.model_copy(update={"objective": objective}))


def _learnt(tuning: Tuning, goal: Goal) -> GuardState:
    """The guard state of the best trial, or the last one."""
    best = tuning.best(goal)
    return tuning.last_guard if best is None else best.guard


def _planned(
    search: Search, tuning: Tuning, chosen: Chosen, uniform: Uniform | None, with_baselines: bool
) -> Planned:
    problem = search.problem
    model, summary = _summary(search, tuning, chosen)
    reasons = explain(problem, search.builder, search.judge, model, chosen.deployment, chosen.evaluation)
    if chosen.num_judged > 1:
        missed = chosen.num_judged - 1
        text = (
            f"{missed} cheaper deployment{'s' if missed > 1 else ''} held on the training traces and missed a"
            " target when judged; this one was chosen with more caution."
        )
        reasons = (*reasons, Reason(subject="fleet", text=text))
    panel = baseline_panel(search, chosen.deployment, chosen.prediction, uniform) if with_baselines else ()
    return Planned(
        status=summary.status,
        deployment=chosen.deployment,
        parked=parked_gpus(problem, chosen.deployment),
        solution=summary,
        prediction=chosen.prediction,
        baselines=panel,
        reasons=reasons,
    )


def _summary(search: Search, tuning: Tuning, chosen: Chosen) -> tuple[PlanningModel, SolutionSummary]:
    """The stated model that the deployment started from, and what its solver proved.

    A start under one clock solves the full model too, as some solution; its bound is the full model's.
    """
    if chosen.trial is None:
        return _summary_of_placement(search, tuning, chosen)
    solution, model = chosen.trial.solution, chosen.trial.model
    bound, status = solution.bound, solution.status
    if not any(chosen.trial is trial for trial in tuning.trials):
        model = make_model(search.problem, search.builder, chosen.trial.guard)
        full = search.solver(model, time_limit_s=search.time_limit_s, seed=search.seed)
        bound, status = full.bound if full.found else _weakest_bound(search), Status.FEASIBLE
    gap = abs(solution.objective - bound) / max(abs(solution.objective), 1e-12)
    if solution.status is Status.OPTIMAL and gap <= RELATIVE_GAP:
        status = Status.OPTIMAL
    return model, SolutionSummary(
        solver=solution.solver,
        status=status,
        objective=search.problem.workload.objective,
        value=solution.objective,
        bound=bound,
        gap=gap,
        seed=search.seed,
        guard_rounds=len(tuning.trials),
    )


def _summary_of_placement(
    search: Search, tuning: Tuning, chosen: Chosen
) -> tuple[PlanningModel, SolutionSummary]:
    """Where the deployment came from no solver: its simulated power against the per-operator oracle."""
    power_w, bound_w = chosen.evaluation.power_w, oracle_power_w(search.problem)
    return make_model(search.problem, search.builder, tuning.last_guard), SolutionSummary(
        solver="placement",
        status=Status.FEASIBLE,
        objective=search.problem.workload.objective,
        value=power_w,
        bound=bound_w,
        gap=abs(power_w - bound_w) / power_w,
        seed=search.seed,
        guard_rounds=len(tuning.trials),
    )


def _weakest_bound(search: Search) -> float:
    """A bound that holds whatever the solver found: the oracle's power, or all of the demand."""
    if search.goal is Goal.POWER:
        return oracle_power_w(search.problem)
    return sum(service.rate_rps for service in search.problem.services)
