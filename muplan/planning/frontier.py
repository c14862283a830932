"""`trace_frontier`: power against attainment, the multiple of all latency limits, or the GPUs used.

Every value of the axis makes a problem of its own. The strictest comes first; what simulation teaches its
guard is where the next one begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from muplan.errors import InputError
from muplan.frontier import Axis, FrontierPoint
from muplan.planning.deploy import parked_gpus
from muplan.planning.guard.levels import GuardState
from muplan.planning.methods.name import MethodName
from muplan.planning.methods.outcome import Found
from muplan.planning.search.progress import Report, silent
from muplan.planning.solve import choose_deployment, make_search
from muplan.problem.problem import Limits, Problem
from muplan.workload import Goal

_TARGETS = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
_SCALES = (0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0)
_FLEET_PARTS = 8
"""Numbers of GPUs tried where none are asked for: so many parts of the fleet."""


def trace_frontier(
    problem: Problem,
    axis: Axis,
    *,
    values: Sequence[float] = (),
    solver: MethodName = MethodName.EXACT,
    time_limit_s: float = 60.0,
    seed: int = 0,
    report: Report = silent,
) -> tuple[FrontierPoint, ...]:
    """Plan for the least power at every value of an axis; the strictest value first.

    Parameters
    ----------
    values
        Of the axis; a ladder of muplan's own where there are none.
    solver, time_limit_s, seed, report
        As `solve`.

    Raises
    ------
    InputError
        Power is not what the workload optimises, or a value is none of the axis.
    """
    if problem.workload.goals != (Goal.POWER,):
        raise InputError(
            "A frontier of power needs power as the one objective; the workload's is"
            f" {', '.join(problem.workload.objective)}.",
            "Add --objective power.",
        )
    points: list[FrontierPoint] = []
    guard: GuardState | None = None
    ladder = sorted(set(values or default_values(problem, axis)), reverse=axis is Axis.ATTAINMENT)
    _check_values(problem, axis, ladder)
    for number, value in enumerate(ladder, start=1):
        search = make_search(
            restricted(problem, axis, value),
            solver=solver,
            time_limit_s=time_limit_s,
            seed=seed,
            tries_uniform=False,
            report=report,
        ).within(f"{axis} {value:g}, {number} of {len(ladder)}")
        outcome = choose_deployment(replace(search, guard=guard), solver)
        if not isinstance(outcome, Found):
            points.append(FrontierPoint(value=value, status=outcome.status))
            continue
        guard = outcome.guard or guard
        points.append(
            FrontierPoint(
                value=value,
                status=outcome.summary.status,
                placed=outcome.deployment.placed_gpus,
                parked=parked_gpus(problem, outcome.deployment),
                solution=outcome.summary,
                deployment=outcome.deployment,
                prediction=outcome.prediction,
            )
        )
    return without_dominated(points)


def without_dominated(points: Sequence[FrontierPoint]) -> tuple[FrontierPoint, ...]:
    """The points, the strictest first, with those marked that a stricter one undercuts."""
    least_w = math.inf
    marked = []
    for point in points:
        if point.prediction is None:
            marked.append(point)
            continue
        power_w = point.prediction.power_w.mean
        marked.append(point.model_copy(update={"is_dominated": power_w >= least_w}))
        least_w = min(least_w, power_w)
    return tuple(marked)


def default_values(problem: Problem, axis: Axis) -> tuple[float, ...]:
    """The values that are tried where none are asked for."""
    if axis is Axis.ATTAINMENT:
        return _TARGETS
    if axis is Axis.SLO_SCALE:
        return _SCALES
    fewest, most = len(_free_pools(problem)), sum(_free_pools(problem))
    parts = (math.ceil(most * part / _FLEET_PARTS) for part in range(1, _FLEET_PARTS + 1))
    return tuple(float(max(fewest, number)) for number in parts)


def _check_values(problem: Problem, axis: Axis, values: Sequence[float]) -> None:
    fewest, most = len(_free_pools(problem)), sum(_free_pools(problem))
    if axis is Axis.ATTAINMENT:
        allowed, wrong = "between 0 and 1", [value for value in values if not 0.0 < value < 1.0]
    elif axis is Axis.SLO_SCALE:
        allowed, wrong = "above 0", [value for value in values if not 0.0 < value < math.inf]
    else:
        allowed = f"a whole number from {fewest} to {most}"
        wrong = [value for value in values if not (fewest <= value <= most and value.is_integer())]
    if wrong:
        raise InputError(
            f"--steps: {', '.join(f'{value:g}' for value in wrong)} is no value of {axis}.",
            f"A value of {axis} is {allowed}.",
        )


def restricted(problem: Problem, axis: Axis, value: float) -> Problem:
    """The problem at a value of an axis."""
    if axis is Axis.GPUS:
        return _with_gpus(problem, int(value))
    if axis is Axis.SLO_SCALE:
        services = tuple(
            replace(
                service,
                limits=Limits(
                    latency_s=service.limits.latency_s * value,
                    ttft_s=service.limits.ttft_s * value,
                    tpot_s=service.limits.tpot_s * value,
                ),
            )
            for service in problem.services
        )
        return replace(problem, services=services)
    specs = tuple(
        service.spec.model_copy(update={"slo": service.spec.slo.model_copy(update={"attainment": value})})
        for service in problem.services
    )
    return replace(
        problem,
        workload=problem.workload.model_copy(update={"services": specs}),
        services=tuple(
            replace(service, spec=spec) for service, spec in zip(problem.services, specs, strict=True)
        ),
    )


def _with_gpus(problem: Problem, num_gpus: int) -> Problem:
    """The first free GPUs of every pool, in proportion and at least one; the others are reserved."""
    fleet = problem.workload.fleet
    free = {pool.name: [gpu for node in pool.free_gpus() for gpu in node] for pool in fleet.pools}
    kept = {name: 1 for name, gpus in free.items() if gpus}
    while sum(kept.values()) < num_gpus:
        fewest = min(
            (name for name in kept if kept[name] < len(free[name])),
            key=lambda name: kept[name] / len(free[name]),
        )
        kept[fewest] += 1
    pools = tuple(
        pool.model_copy(
            update={
                "reserved_gpus": (*pool.reserved_gpus, *free[pool.name][kept.get(pool.name, 0) :]),
            }
        )
        for pool in fleet.pools
    )
    smaller = fleet.model_copy(update={"pools": pools})
    return replace(problem, workload=problem.workload.model_copy(update={"fleet": smaller}))


def _free_pools(problem: Problem) -> list[int]:
    """Free GPUs of every pool that has some."""
    free = (sum(len(node) for node in pool.free_gpus()) for pool in problem.pools)
    return [number for number in free if number > 0]
