"""Why a workload has no plan: the smallest set of conflicting demands, and the nearest change that helps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from muplan.plan import Reason
from muplan.planning.guard.levels import GuardState
from muplan.planning.search.tuning import Tuning, make_model
from muplan.planning.solvers.exact import solve_exact
from muplan.planning.solvers.incumbent import ColumnPool
from muplan.planning.solvers.master import relax
from muplan.planning.solvers.pricing import Pricer
from muplan.planning.solvers.restricted import Effort, choose_groups
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.model import Form, GroupType, PlanningModel
from muplan.problem.problem import Problem
from muplan.serde import Part
from muplan.workload import Goal

_TOP = 1e9
_TIME_LIMIT_S = 20.0
_ROUGH_GAP = 1e-2
_SETS = 400
_PLENTY = 64
"""Times the fleet that is GPUs without end."""


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
    if open_services and not _carries(model, open_services):
        scale = _largest_scale(model, open_services)
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


def _only(model: PlanningModel, services: Sequence[str]) -> PlanningModel:
    """The model with the demand of ``services`` alone."""
    rates = {name: rate if name in services else 0.0 for name, rate in model.rates_rps.items()}
    return replace(model, rates_rps=rates, goal=Goal.POWER)


def _carries(model: PlanningModel, services: Sequence[str]) -> bool:
    """Whether the fleet can carry the whole demand of ``services``."""
    return solve_exact(_only(model, services), time_limit_s=_TIME_LIMIT_S, seed=0, gap=_ROUGH_GAP).found


def _largest_scale(model: PlanningModel, services: Sequence[str]) -> float:
    """A factor at which the fleet carries the demand of ``services``; the largest over the sets offered."""
    multiple = replace(_only(model, services), goal=Goal.GOODPUT, common_factor=True)
    pricer = Pricer(multiple)
    offered = ColumnPool(multiple, pricer).nearest(relax(multiple, pricer), _SETS, math.inf)
    if not offered:
        return 0.0
    effort = Effort(gap=1e-3, max_nodes=10_000, time_limit_s=_TIME_LIMIT_S, seed=0)
    found = choose_groups(multiple, offered, effort)
    return min(1.0, -found.objective) if found.groups else 0.0


def _smallest_conflict(model: PlanningModel, services: Sequence[str]) -> list[str]:
    """A set of services that together ask too much, none of which can be left out (deletion filter)."""
    members = list(services)
    for name in sorted(services, key=lambda item: _work(model, item)):
        rest = [member for member in members if member != name]
        if rest and not _carries(model, rest):
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
    model = _only(model, services)
    if of == "gpus":
        pools = tuple(
            replace(pool, num_gpus=pool.num_gpus * _PLENTY, free_per_node=pool.free_per_node * _PLENTY)
            for pool in model.pools
        )
        parked = sum(pool.num_gpus * pool.parked_w for pool in pools) - model.parked_w
        model = replace(model, pools=pools, power_cap_w=model.power_cap_w + parked)
    if not use_cap:
        model = replace(model, power_cap_w=math.inf)
    counted = replace(model, group_types=_counted(model, of))
    found = solve_exact(counted, time_limit_s=_TIME_LIMIT_S, seed=0, gap=_ROUGH_GAP)
    if not found.found:
        return None
    total = found.objective - counted.parked_w
    return total + (model.parked_w if of == "peak" else 0.0)


def _counted(model: PlanningModel, of: str) -> tuple[GroupType, ...]:
    """The group types with GPUs, or peak power above that of parked GPUs, in the place of power."""
    forms: dict[tuple[int, float], Form] = {}
    types = []
    for group_type in model.group_types:
        form = group_type.form
        above_w = group_type.peak_w - form.num_gpus * model.pool(form.pool).parked_w
        weight = float(form.num_gpus) if of == "gpus" else above_w
        if (id(form), weight) not in forms:
            hostings = tuple(replace(item, energy_j=0.0) for item in form.hostings)
            forms[id(form), weight] = replace(form, standing_w=weight, hostings=hostings)
        types.append(replace(group_type, form=forms[id(form), weight]))
    return tuple(types)


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
        item.form.hostings[index].occupancy_s / item.utilisation * item.form.num_gpus
        for item in model.group_types
        for index in item.members
        if item.form.hostings[index].service == name
    ]
    return min(loads, default=0.0) * model.rates_rps[name]
