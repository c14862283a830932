"""`compare`: several methods plan one problem, and are judged on the same held-apart traces."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from muplan.comparison import ComparedPlan
from muplan.errors import InputError
from muplan.plan import Deployment, Interval
from muplan.planning.deploy import parked_gpus
from muplan.planning.methods.catalog import METHODS
from muplan.planning.methods.name import DESCRIPTIONS, MethodName
from muplan.planning.methods.outcome import Found, Outcome
from muplan.planning.search.progress import Report, silent
from muplan.planning.search.search import Search
from muplan.planning.solve import choose_deployment, make_search, with_objective
from muplan.problem.problem import Problem
from muplan.serving.prediction import interval, replicate
from muplan.traces.generate import Purpose
from muplan.workload import Goal


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A method's plan beside the others, and how long the search for it took, seconds."""

    plan: ComparedPlan
    search_s: float


def compare(
    problem: Problem,
    *,
    solvers: Sequence[MethodName],
    objective: Sequence[Goal] = (),
    time_limit_s: float = 60.0,
    seed: int = 0,
    report: Report = silent,
) -> tuple[Compared, ...]:
    """Plan a problem by several methods; the first is what the others are held against.

    Every method begins from nothing, so that its time is its own. Parameters as `solve`.

    Raises
    ------
    InputError
        The highest rate is a goal: each method would then be at a demand of its own.
    """
    problem = with_objective(problem, objective)
    if Goal.RATE in problem.workload.goals:
        raise InputError(
            "The objective 'rate' plans for another demand with every method.",
            "Compare at one demand: --objective power.",
        )
    search = make_search(
        problem,
        solver=solvers[0],
        time_limit_s=time_limit_s,
        seed=seed,
        tries_uniform=True,
        report=report,
    )
    found: list[tuple[MethodName, Outcome, float]] = []
    for name in solvers:
        start_s = time.monotonic()
        mine = replace(search, solver=METHODS[name].solver).within(name)
        found.append((name, choose_deployment(mine, name), time.monotonic() - start_s))
    first = found[0][1].deployment
    first_w = _powers_w(search, first) if first is not None else None
    return tuple(
        Compared(plan=_plan(search, name, outcome, first_w), search_s=search_s)
        for name, outcome, search_s in found
    )


def _plan(
    search: Search, name: MethodName, outcome: Outcome, first_w: Sequence[float] | None
) -> ComparedPlan:
    made = isinstance(outcome, Found)
    row = ComparedPlan(
        solver=name,
        description=DESCRIPTIONS[name],
        status=outcome.summary.status if isinstance(outcome, Found) else outcome.status,
        meets_targets=made,
        solution=outcome.summary if isinstance(outcome, Found) else None,
        faults=() if isinstance(outcome, Found) else outcome.faults,
    )
    deployment = outcome.deployment
    if deployment is None:
        return row
    return row.model_copy(
        update={
            "placed": deployment.placed_gpus,
            "parked": parked_gpus(search.problem, deployment),
            "deployment": deployment,
            "prediction": outcome.prediction,
            "power_over_first": _over(_powers_w(search, deployment), first_w) if first_w else None,
        }
    )


def _powers_w(search: Search, deployment: Deployment) -> list[float]:
    """Power in every replication of the judgement."""
    runs = replicate(search.problem, deployment, seed=search.seed, purpose=Purpose.JUDGING)
    return [run.power_w for run in runs]


def _over(powers_w: Sequence[float], first_w: Sequence[float]) -> Interval:
    """The ratio of two powers with its interval: paired, as both served the same requests."""
    return interval([power / first for power, first in zip(powers_w, first_w, strict=True)], lowest=0.0)
