"""Reasons: what binds, why a group has its clock, what grouping by sensitivity was worth."""

from __future__ import annotations

import math
from collections.abc import Mapping

from muplan.plan import Deployment, Group, Reason
from muplan.planning.estimates.forward import ForwardEstimator
from muplan.planning.estimates.grouping import grouping_worth
from muplan.planning.search.descent import shift_clock
from muplan.planning.search.evaluation import Evaluation, Judge
from muplan.planning.solvers.master import relax
from muplan.planning.solvers.pricing import Pricer
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.constraints import slot_widths
from muplan.planning.stated.model import PlanningModel
from muplan.problem.problem import Problem
from muplan.workload import Goal

_NOTABLE_W = 0.05


def explain(
    problem: Problem,
    builder: CandidateBuilder,
    judge: Judge,
    model: PlanningModel,
    deployment: Deployment,
    evaluation: Evaluation,
) -> tuple[Reason, ...]:
    """All reasons of a plan; modelled and simulated figures say so."""
    return (
        parking(problem, deployment),
        *admission(problem, deployment),
        *prices(model),
        *clocks(problem, judge, deployment, evaluation),
        *grouping(builder),
    )


def parking(problem: Problem, deployment: Deployment) -> Reason:
    """How many GPUs are parked."""
    total = problem.workload.fleet.num_gpus
    placed = len(deployment.placed_gpus)
    return Reason(subject="fleet", text=f"{placed} of {total} GPUs host services; parked: {total - placed}.")


def admission(problem: Problem, deployment: Deployment) -> list[Reason]:
    """Which services are not admitted whole."""
    cap_w = problem.workload.fleet.power_cap_w
    limits = "GPUs and limits" if cap_w is None else f"GPUs, limits and the cap of {cap_w:g} W"
    return [
        Reason(
            subject=name,
            text=f"{share:.1%} of its demand is admitted: {limits} leave no room for more requests per second"
            " in all, and its requests cost more than others (modelled).",
        )
        for name, share in deployment.admitted.items()
        if share < 1
    ]


def prices(model: PlanningModel) -> list[Reason]:
    """Shadow prices of the linear relaxation: what one more GPU, or one more request per second, changes."""
    if model.goal is not Goal.POWER:
        return []
    relaxation = relax(model, Pricer(model))
    if not relaxation.feasible:
        return []
    price = relaxation.row_prices
    reasons = []
    for pool in model.pools:
        value = -sum(
            price[f"gpus_available_{pool.name}_{width}"] / width for width in slot_widths(model, pool)
        )
        text = (
            f"the {pool.num_gpus} GPUs of {pool.name} bind: one more would save about {value:.1f} W"
            if value > _NOTABLE_W
            else f"the GPUs of {pool.name} do not bind: one more would save nothing"
        )
        reasons.append(Reason(subject="fleet", text=f"{text} (modelled, linear relaxation)."))
    if math.isfinite(model.power_cap_w):
        binds = "binds" if -price["power_cap"] > 1e-6 else "does not bind"
        reasons.append(Reason(subject="fleet", text=f"the power cap {binds} (modelled, linear relaxation)."))
    costs = ", ".join(
        f"{price[f'demand_served_{service}']:.3g} W of {service}" for service in model.rates_rps
    )
    text = f"one more request per second costs about {costs} (modelled, linear relaxation)."
    return [*reasons, Reason(subject="services", text=text)]


def clocks(problem: Problem, judge: Judge, deployment: Deployment, evaluation: Evaluation) -> list[Reason]:
    """Why every kind of group has its clock: what the next lower clock would do to it."""
    kinds: dict[tuple[object, ...], list[Group]] = {}
    for group in deployment.groups:
        hosted = tuple(sorted(replica.service for replica in group.replicas))
        key = (group.pool, group.tensor_parallel, tuple(stage.clock_mhz for stage in group.stages), hosted)
        kinds.setdefault(key, []).append(group)
    reasons = []
    for groups in kinds.values():
        names = ", ".join(group.name for group in groups)
        clock = "/".join(str(mhz) for mhz in sorted({stage.clock_mhz for stage in groups[0].stages}))
        lowered = {group.name: shift_clock(problem, group, -1) for group in groups}
        if all(lowered[group.name] == group for group in groups):
            text = f"at {clock} MHz, the lowest clock of the profiles."
        else:
            text = f"at {clock} MHz: one step lower " + _consequence(judge, deployment, evaluation, lowered)
        reasons.append(Reason(subject=names, text=text))
    return reasons


def _consequence(
    judge: Judge, deployment: Deployment, evaluation: Evaluation, lowered: Mapping[str, Group]
) -> str:
    groups = tuple(lowered.get(group.name, group) for group in deployment.groups)
    found = judge.evaluate(deployment.model_copy(update={"groups": groups}))
    short = [(margin.mean, name) for name, margin in found.margins.items() if margin.low < 0]
    if short:
        margin, name = min(short)
        target = judge.problem.service(name).attainment
        what = "misses its target" if margin < 0 else "has too little safety above its target"
        return f"{name} {what} of {target:.2%} with {target + margin:.3%} (simulated)."
    lost_rps = evaluation.goodput_rps - found.goodput_rps
    if Goal.GOODPUT in judge.problem.workload.goals and lost_rps > 0:
        return f"{lost_rps:.2f} requests/s less would be within their limits (simulated)."
    difference = found.power_w - evaluation.power_w
    if difference >= 0:
        return f"the fleet would draw {difference:.1f} W more (simulated)."
    if judge.problem.workload.sheds_load:
        return (
            f"the fleet would draw {-difference:.1f} W less and lose no goodput (simulated); the search for"
            " goodput keeps the highest clock."
        )
    name = min(found.margins, key=lambda service: found.margins[service].mean - found.noise[service])
    target = judge.problem.service(name).attainment
    return (
        f"the fleet would draw {-difference:.1f} W less, with {name} nearer to its target of"
        f" {target:.2%} than a plan may be: {target + found.margins[name].mean:.2%} (simulated)."
    )


def grouping(builder: CandidateBuilder) -> list[Reason]:
    """What separating clusters by sensitivity is worth on two GPUs, for a service of every forward model."""
    best: dict[str, ForwardEstimator] = {}
    for estimator in builder.forward_estimators:
        best.setdefault(estimator.costs.profile.model, estimator)
    reasons = []
    ties = []
    for estimator in best.values():
        worth = grouping_worth(estimator.service, estimator.costs)
        if worth.is_tie:
            ties.append(estimator.service.name)
        else:
            reasons.append(Reason(subject=estimator.service.name, text=worth.text))
    if ties:
        text = (
            f"grouping by sensitivity on two GPUs with own clocks saves nothing for {', '.join(ties)}:"
            " least energy is at one clock for both, and transfers come on top (modelled)."
        )
        reasons.append(Reason(subject="services", text=text))
    return reasons
