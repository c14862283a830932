"""Why a workload has no plan: the smallest set of conflicting demands, and the nearest change that helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from muplan.plan import Reason
from muplan.planning.search.tuning import Tuning, make_model
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.constraints import Variables, capacity, gpus_available, make_variables, power_cap
from muplan.planning.stated.hosting_sets import GuardState
from muplan.planning.stated.model import PlanningModel
from muplan.problem.problem import Problem
from muplan.serde import Part

if TYPE_CHECKING:
    from pulp import LpAffineExpression, LpProblem

_TOP = 1e9
_ENOUGH = 1 - 1e-6


class Conflict(Part):
    """Demands that cannot be met together, and what would help."""

    demands: tuple[Reason, ...]
    changes: tuple[str, ...]


def find_conflict(problem: Problem, builder: CandidateBuilder, tuning: Tuning) -> Conflict:
    """Explain why no deployment holds.

    First come services that no group of the fleet can serve at any load; then, for the others, the
    smallest set whose demand exceeds what the fleet carries at full utilisation; then what simulation
    found, where the model alone sees no conflict.
    """
    demands: list[Reason] = []
    changes: list[str] = []
    for refusal in builder.refusals():
        demands.append(Reason(subject=refusal.service, text=refusal.text))
        changes.append(refusal.change)
    refused = {refusal.service for refusal in builder.refusals()}
    model = _optimistic_model(problem, builder)
    open_services = [name for name in model.rates_rps if name not in refused]
    scale = _largest_scale(model, open_services) if open_services else 1.0
    if scale < _ENOUGH:
        members = _smallest_conflict(model, open_services)
        demands += _overload(problem, model, members)
        changes += _capacity_changes(problem, model, open_services, scale)
    if not demands:
        demands, changes = _simulated(problem, tuning)
    return Conflict(demands=tuple(demands), changes=tuple(changes))


def _optimistic_model(problem: Problem, builder: CandidateBuilder) -> PlanningModel:
    """The model with every group allowed to be fully used."""
    guard = GuardState(
        corrections={service.name: _TOP for service in problem.services},
        pooled_gpus={service.name: float(problem.workload.fleet.num_gpus) for service in problem.services},
    )
    return make_model(problem, builder, guard)


def _largest_scale(model: PlanningModel, services: Sequence[str]) -> float:
    """The largest factor at which the fleet carries the demand of ``services``, at most 1."""
    from pulp import LpMaximize, LpProblem

    program = LpProblem("scale", LpMaximize)
    variables = make_variables(program, model)
    factor = program.add_variable("scale", 0, 1)
    program.setObjective(factor)
    for name in services:
        program.addConstraint(_carried(model, variables, name) == factor * model.rates_rps[name])
    for constraint in (capacity, gpus_available, power_cap):
        constraint(program, model, variables)
    return _solve(program)


def _smallest_conflict(model: PlanningModel, services: Sequence[str]) -> list[str]:
    """A set of services that together ask too much, none of which can be left out (deletion filter)."""
    members = list(services)
    for name in sorted(services, key=lambda item: _work(model, item)):
        rest = [member for member in members if member != name]
        if rest and _largest_scale(model, rest) < _ENOUGH:
            members = rest
    return members


def _overload(problem: Problem, model: PlanningModel, members: Sequence[str]) -> list[Reason]:
    fleet = ", ".join(f"{pool.num_gpus} × {pool.device}" for pool in problem.pools)
    cap_w = problem.workload.fleet.power_cap_w
    limit = f"{fleet} under a cap of {cap_w:g} W" if cap_w is not None else fleet
    scale = _largest_scale(model, members)
    reasons = []
    for name in members:
        others = [member for member in members if member != name]
        together = f"together with {', '.join(others)}" if others else "alone"
        reasons.append(
            Reason(
                subject=name,
                text=f"{name} asks {model.rates_rps[name]:g} requests/s, {together} more than {limit} can"
                f" carry within the limits; at full utilisation {scale:.0%} of it (modelled).",
            )
        )
    return reasons


def _capacity_changes(
    problem: Problem, model: PlanningModel, services: Sequence[str], scale: float
) -> list[str]:
    changes = []
    if scale > 0:
        changes.append(
            f"Scale the demand of {', '.join(services)} by {scale:.2f} or less"
            " (modelled, at full utilisation)."
        )
    gpus = _least_total(model, services, use_cap=True, of="gpus")
    if gpus is not None and gpus > problem.workload.fleet.num_gpus:
        more = round(gpus) - problem.workload.fleet.num_gpus
        changes.append(f"Add {more} GPUs or more (modelled, at full utilisation).")
    if problem.workload.fleet.power_cap_w is not None:
        peak = _least_total(model, services, use_cap=False, of="peak")
        if peak is not None and peak > problem.workload.fleet.power_cap_w:
            changes.append(f"Raise the fleet's cap to {peak:.0f} W or more (modelled, at full utilisation).")
    return changes


def _least_total(model: PlanningModel, services: Sequence[str], *, use_cap: bool, of: str) -> float | None:
    """Fewest GPUs on pools without end, or least peak power on those there are; None where neither helps."""
    from pulp import LpMinimize, LpProblem, lpSum

    if of == "gpus":
        pools = tuple(replace(pool, num_gpus=pool.num_gpus * 64) for pool in model.pools)
        parked = sum(pool.num_gpus * pool.parked_w for pool in pools) - model.parked_w
        model = replace(model, pools=pools, power_cap_w=model.power_cap_w + parked)
    program = LpProblem("least", LpMinimize)
    variables = make_variables(program, model)
    weights = [
        configuration.num_gpus
        if of == "gpus"
        else configuration.peak_w - configuration.num_gpus * model.pool(configuration.pool).parked_w
        for configuration in model.configurations
    ]
    program.setObjective(
        lpSum(weight * count for weight, count in zip(weights, variables.counts, strict=True))
    )
    for name in services:
        program.addConstraint(_carried(model, variables, name) == model.rates_rps[name])
    for constraint in (capacity, gpus_available, *((power_cap,) if use_cap else ())):
        constraint(program, model, variables)
    value = _solve(program)
    return None if value != value else value + (model.parked_w if of == "peak" else 0.0)


def _simulated(problem: Problem, tuning: Tuning) -> tuple[list[Reason], list[str]]:
    """What the best attempt attained, where the model alone sees no conflict."""
    if not tuning.trials:
        text = "no deployment was found within the guard; the limits leave too little room for waiting"
        return [Reason(subject="fleet", text=text)], ["Loosen the limits, lower the targets, or add GPUs."]
    best = max(tuning.trials, key=lambda trial: trial.evaluation.worst)
    reasons = []
    for name, margin in best.evaluation.margins.items():
        if margin.low < 0:
            target = problem.service(name).attainment
            reasons.append(
                Reason(
                    subject=name,
                    text=f"{name} attains {target + margin.mean:.2%} in the best deployment found, its target"
                    f" is {target:.2%} (simulated; not proven that none does better).",
                )
            )
    if not reasons:
        text = (
            "deployments that hold on the training traces miss a target when judged on others; the"
            " simulations are too short to tell which would hold"
        )
        return [Reason(subject="fleet", text=text)], [
            "Raise simulation.duration_s or simulation.replications."
        ]
    return reasons, [
        "Loosen the limits or lower the targets of these services, lower their demand, or add GPUs."
    ]


def _work(model: PlanningModel, name: str) -> float:
    """Least GPUs that the demand of a service keeps busy."""
    loads = [
        configuration.load_s(hosting) * configuration.num_gpus
        for configuration in model.configurations
        for hosting in configuration.hostings
        if hosting.service == name
    ]
    return min(loads, default=0.0) * model.rates_rps[name]


def _carried(model: PlanningModel, variables: Variables, name: str) -> LpAffineExpression:
    from pulp import lpSum

    return lpSum(
        variable
        for configuration, row in zip(model.configurations, variables.rates_rps, strict=True)
        for hosting, variable in zip(configuration.hostings, row, strict=True)
        if hosting.service == name
    )


def _solve(program: LpProblem) -> float:
    """Solve a small programme; its objective, NaN where it is infeasible."""
    from pulp import HiGHS, LpStatusOptimal

    program.solve(HiGHS(msg=False, gapRel=1e-3, threads=1, timeLimit=30))
    return float(program.objective.value()) if program.status == LpStatusOptimal else float("nan")
