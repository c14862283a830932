"""Reasons: what binds, why a group has its clock, what grouping by sensitivity was worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from muplan.plan import Deployment, Group, MarginalValue, Reason, WhatIf
from muplan.planning.estimates.forward import ForwardEstimator
from muplan.planning.estimates.grouping import grouping_worth
from muplan.planning.explain.what_ifs import basis, in_words, saving
from muplan.planning.search.descent import shift_clock
from muplan.planning.search.evaluation import Evaluation, Judge
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.problem.problem import Problem
from muplan.workload import Goal

_NOTABLE_W = 0.05
_NOTABLE_PRICE = 1e-6
_LEAST_SIMULATED = 1
_PART_OF_SEARCH = 0.25
"""Simulations that reasons may take, as a part of those that a descent may."""


def explain(
    problem: Problem,
    builder: CandidateBuilder,
    judge: Judge,
    values: Sequence[MarginalValue],
    changes: Sequence[WhatIf],
    deployment: Deployment,
    evaluation: Evaluation,
) -> tuple[Reason, ...]:
    """All reasons of a plan; modelled and simulated figures say so."""
    return (
        parking(problem, deployment),
        *admission(problem, deployment),
        *prices(values, changes),
        *in_words(changes),
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


def prices(values: Sequence[MarginalValue], changes: Sequence[WhatIf]) -> list[Reason]:
    """What the marginal values say: which limits bind, and what a request more costs.

    The price of a GPU is an upper bound on what a whole one more would save; where that was found itself, it
    is said instead.
    """
    added = {item.subject: item for item in changes if item.change == "one-more-gpu"}
    reasons = []
    for item in values:
        how = "modelled, linear relaxation"
        if item.constraint == "gpus_available" and item.subject in added:
            text, how = _with_one_more(added[item.subject]), basis([added[item.subject]])
        elif item.constraint == "gpus_available":
            text = (
                f"the GPUs of {item.subject} bind: one more would save at most {-item.value:.1f} W"
                if -item.value > _NOTABLE_W
                else f"the GPUs of {item.subject} do not bind: one more would save nothing"
            )
        elif item.unit == "W per W":
            binds = "binds" if -item.value > _NOTABLE_PRICE else "does not bind"
            cap = "the power cap" if item.subject == "fleet" else f"the cap on the nodes of {item.subject}"
            text = f"{cap} {binds}"
        else:
            continue
        reasons.append(Reason(subject="fleet", text=f"{text} ({how})."))
    costs = ", ".join(
        f"{item.value:.3g} W of {item.subject}" for item in values if item.constraint == "demand_served"
    )
    if costs:
        text = f"one more request per second costs about {costs} (modelled, linear relaxation)."
        reasons.append(Reason(subject="services", text=text))
    return reasons


def _with_one_more(change: WhatIf) -> str:
    if change.saves_w <= _NOTABLE_W:
        return f"the GPUs of {change.subject} do not bind: one more would save nothing"
    return f"the GPUs of {change.subject} bind: one more would save {saving(change)}"


def clocks(problem: Problem, judge: Judge, deployment: Deployment, evaluation: Evaluation) -> list[Reason]:
    """Why every kind of group has its clock: what the next lower clock would do to it."""
    kinds: dict[tuple[object, ...], list[Group]] = {}
    for group in deployment.groups:
        hosted = tuple(sorted(replica.service for replica in group.replicas))
        key = (group.pool, group.tensor_parallel, tuple(stage.clock_mhz for stage in group.stages), hosted)
        kinds.setdefault(key, []).append(group)
    reasons = []
    simulated = judge.affordable(len(kinds), least=_LEAST_SIMULATED, part=_PART_OF_SEARCH)
    told = sorted(kinds, key=lambda key: -len(kinds[key]))[:simulated]
    for kind, groups in kinds.items():
        if kind not in told:
            continue
        names = ", ".join(group.name for group in groups)
        clock = "/".join(str(mhz) for mhz in sorted({stage.clock_mhz for stage in groups[0].stages}))
        lowered = {group.name: shift_clock(problem, group, -1) for group in groups}
        if all(lowered[group.name] == group for group in groups):
            text = f"at {clock} MHz, the lowest clock of the profiles."
        else:
            text = f"at {clock} MHz: one step lower " + _consequence(judge, deployment, evaluation, lowered)
        reasons.append(Reason(subject=names, text=text))
    if simulated < len(kinds):
        text = (
            f"{len(kinds) - simulated} more kinds of groups have clocks whose reasons were not simulated:"
            " with so many requests only the kinds with the most groups are."
        )
        reasons.append(Reason(subject="fleet", text=text))
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
