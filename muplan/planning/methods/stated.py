"""The methods that solve the stated model: solve, simulate, correct the guard, then search from the best."""

from __future__ import annotations

from dataclasses import replace

from muplan.plan import Reason, SolutionSummary, Status
from muplan.planning.baselines.uniform import best_uniform_clock
from muplan.planning.methods.outcome import (
    Found,
    Missed,
    Outcome,
    goal_summary,
    simulated_summary,
    weakest_bound,
)
from muplan.planning.search.choice import Chosen, choose
from muplan.planning.search.search import Search
from muplan.planning.search.tuning import Tuning, first_guard, make_model, tune
from muplan.planning.solvers.exact import RELATIVE_GAP
from muplan.planning.stated.model import PlanningModel

_ROUNDS, _ROUNDS_OF_PART = 5, 10
"""Where part of the demand may go unserved more: every round admits other shares, which moves the guard."""
_LAST_ROUNDS, _LEAST_ROUNDS = 2, 2


def choose_stated(search: Search) -> Outcome:
    """Tune the stated model by simulation, lower the best deployments that hold, and judge them."""
    tuning = tune_model(search)
    uniform = best_uniform_clock(search, tuning.learnt(search.goals)) if search.tries_uniform else None
    if uniform is not None and uniform.trial is not None:
        # What one clock for all taught the guard serves the full model too.
        tuning.trials += tune(search, guard=uniform.trial.guard, rounds=_LAST_ROUNDS).trials
    chosen = choose(search, tuning, uniform)
    if chosen is None:
        timed_out = (
            tuning.unsolved is not None and tuning.unsolved.status is Status.TIME_LIMIT and not tuning.trials
        )
        return Missed(status=Status.TIME_LIMIT if timed_out else Status.INFEASIBLE, tuning=tuning)
    model, summary = _summary(search, tuning, chosen)
    return Found(
        deployment=chosen.deployment,
        evaluation=chosen.evaluation,
        prediction=chosen.prediction,
        model=model,
        summary=summary,
        notes=_notes(chosen),
        uniform=uniform,
        guard=tuning.learnt(search.goals),
    )


def tune_model(search: Search) -> Tuning:
    """Tune the stated model from the closed forms on, with as many rounds as the goal needs."""
    wanted = _ROUNDS_OF_PART if search.problem.workload.admits_part else _ROUNDS
    rounds = search.judge.affordable(wanted, least=_LEAST_ROUNDS)
    return tune(search, guard=search.guard or first_guard(search.problem, search.builder), rounds=rounds)


def _notes(chosen: Chosen) -> tuple[Reason, ...]:
    missed = chosen.num_judged - 1
    if missed == 0:
        return ()
    text = (
        f"{missed} cheaper deployment{'s' if missed > 1 else ''} held on the training traces and missed a"
        " target when judged; this one was chosen with more caution."
    )
    return (Reason(subject="fleet", text=text),)


def _summary(search: Search, tuning: Tuning, chosen: Chosen) -> tuple[PlanningModel, SolutionSummary]:
    """The stated model that the deployment started from, and what its solver proved.

    A start under one clock solves the full model too, as some solution; its bound is the full model's. Of
    goals after the first the full model's bounds say nothing then: they hold at its own best of the first.
    """
    if chosen.trial is None:
        model = make_model(search.problem, search.builder, tuning.last_guard)
        return model, simulated_summary(search, "placement", chosen.evaluation, len(tuning.trials))
    solution, model = chosen.trial.solution, chosen.trial.model
    achieved, status = solution.achieved, solution.status
    if not any(chosen.trial is trial for trial in tuning.trials):
        model = make_model(search.problem, search.builder, chosen.trial.guard)
        full = search.solved(model)
        bound = full.bound if full.found else weakest_bound(search, search.goals[0])
        achieved, status = (replace(achieved[0], bound=bound),), Status.FEASIBLE
        if solution.status is Status.OPTIMAL and achieved[0].gap <= RELATIVE_GAP:
            status = Status.OPTIMAL
    return model, SolutionSummary(
        solver=solution.solver,
        status=status,
        achieved=tuple(goal_summary(item.goal, item.value, item.bound) for item in achieved),
        seed=search.seed,
        guard_rounds=len(tuning.trials),
    )
