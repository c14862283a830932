"""Why a workload has no plan: sets of demands that conflict, none of which has one too many.

What is feasible, a *criterion* says: the fleet at full utilisation, or, where that sees no conflict, the
planner itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from muplan.plan import Reason
from muplan.planning.explain.changes import Change, Judge, combined, find_repairs
from muplan.planning.explain.demands import demands_of, with_services, without
from muplan.planning.explain.full_utilisation import FullUtilisation, services_by_work
from muplan.planning.explain.minimal_set import MinimalSet, find_sets
from muplan.planning.explain.planner import finds_plan
from muplan.planning.search.tuning import Tuning
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.model import LEAST_ADMITTED
from muplan.problem.problem import Problem
from muplan.serde import Part

_MOST_PLANNED_SERVICES, _MOST_PLANNED_REQUESTS = 10, 400_000.0
"""The planner is asked about parts of a workload with so many services and simulated requests at most."""


class Criterion(StrEnum):
    """What judged the feasibility of a conflict's demands."""

    FULL_UTILISATION = "full-utilisation"  # the stated model, every group fully used: a proof
    PLANNER = "planner"  # the planner itself, greedy and with few rounds: none was found
    SIMULATION = "simulation"  # the best deployment found falls short; nothing is proven


_PRECISION = {Criterion.FULL_UTILISATION: 1.01, Criterion.PLANNER: 1.3}
"""Ratio to which a change is the smallest one."""


class ConflictSet(Part):
    """Demands that cannot be met together."""

    demands: tuple[Reason, ...]
    criterion: Criterion
    is_minimal: bool
    """Whether the demands were seen to be feasible without any single one of them."""
    text: str
    """What stands between them."""
    changes: tuple[Change, ...]
    """Each alone makes them feasible, beside all demands that are in no other set; the smallest first."""


class Conflict(Part):
    """All conflicts of a workload, no service in two of them."""

    sets: tuple[ConflictSet, ...]
    fix: tuple[Change, ...]
    """The smallest change of every set, together seen to make the workload feasible; or none."""


def find_conflict(problem: Problem, builder: CandidateBuilder, tuning: Tuning) -> Conflict:
    """Explain why no deployment holds.

    Where part of the demand may go unserved, what conflicts is the part that may not.

    Parameters
    ----------
    tuning
        What simulation found, for where no set of demands can be singled out.
    """
    admits_part = problem.workload.admits_part
    asked = _scaled(problem, LEAST_ADMITTED) if admits_part else problem
    full = FullUtilisation()
    order = services_by_work(full.model(asked))
    found = find_sets(asked, order, full.answer, is_monotone=True)
    if found:
        texts = {refusal.service: refusal.text for refusal in builder.refusals()}
        return _conflict(asked, found, full.answer, Criterion.FULL_UTILISATION, texts)
    if not admits_part and _is_affordable(problem):
        found = find_sets(problem, order, finds_plan, is_monotone=False)
        if found:
            return _conflict(problem, found, finds_plan, Criterion.PLANNER, {})
    return _simulated(problem, tuning)


def _is_affordable(problem: Problem) -> bool:
    """Whether the planner can be asked about subsets of the services in reasonable time."""
    simulation = problem.workload.simulation
    requests = sum(service.rate_rps for service in problem.services) * simulation.duration_s
    return (
        len(problem.services) <= _MOST_PLANNED_SERVICES
        and requests * simulation.replications <= _MOST_PLANNED_REQUESTS
    )


def _scaled(problem: Problem, factor: float) -> Problem:
    return with_services(problem, (service.scaled(factor) for service in problem.services))


def _conflict(
    problem: Problem,
    found: Sequence[MinimalSet],
    judge: Judge,
    criterion: Criterion,
    texts: Mapping[str, str],
) -> Conflict:
    """The sets with the changes that resolve each, and the smallest of these together."""
    precision = _PRECISION[criterion]
    sets, repairs = [], []
    for item in found:
        others = [demand for other in found if other is not item for demand in other.demands]
        alone = without(problem, (demand for demand in others if demand.is_service))
        helpful = find_repairs(alone, item.demands, judge, precision=precision)
        repairs += helpful[:1]
        sets.append(
            ConflictSet(
                demands=tuple(Reason(subject=one.subject, text=one.text) for one in item.demands),
                criterion=criterion,
                is_minimal=item.is_minimal,
                text=_set_text(problem, item, criterion, texts),
                changes=tuple(repair.change for repair in helpful),
            )
        )
    demands = [demand for item in found for demand in item.demands]
    fix = combined(problem, repairs, demands, judge, precision=precision)
    return Conflict(sets=tuple(sets), fix=tuple(repair.change for repair in fix))


def _set_text(problem: Problem, item: MinimalSet, criterion: Criterion, texts: Mapping[str, str]) -> str:
    fleet = ", ".join(f"{pool.num_gpus} × {pool.device}" for pool in problem.pools)
    names = [demand.subject for demand in item.demands if demand.is_service]
    if len(item.demands) == len(names) == 1 and names[0] in texts:
        return texts[names[0]]
    if criterion is Criterion.PLANNER:
        return f"The planner finds no deployment on {fleet} that meets all of this (simulated; no proof)."
    return f"{fleet} cannot carry all of this within the limits, even fully used (modelled)."


def _simulated(problem: Problem, tuning: Tuning) -> Conflict:
    """What the best attempt attained, where no set of demands can be singled out."""
    short = []
    if tuning.trials:
        best = max(tuning.trials, key=lambda trial: trial.evaluation.worst)
        for name, margin in best.evaluation.margins.items():
            if margin.low < 0:
                target = problem.service(name).attainment
                text = (
                    f"attains {target + margin.mean:.2%} in the best deployment found, by its 95 % interval"
                    f" perhaps {target + margin.low:.2%}; its target is {target:.2%}"
                )
                short.append(Reason(subject=name, text=text))
        text = (
            "These fall short in the best deployment found (simulated; not proven that none does better)."
            " Loosen their limits, lower their targets or demand, or add GPUs."
        )
        if not short:
            text = (
                "Deployments that hold on the training traces miss a target when judged on others; the"
                " simulations are too short to tell which would hold. Raise simulation.duration_s or"
                " simulation.replications."
            )
    else:
        text = (
            "No deployment was found within the guard: the limits leave too little room for waiting. Loosen"
            " the limits, lower the targets, or add GPUs."
        )
    asked = tuple(Reason(subject=one.subject, text=one.text) for one in demands_of(problem))
    return fallen_short(tuple(short) or asked, text)


def fallen_short(demands: tuple[Reason, ...], text: str) -> Conflict:
    """A conflict that is nothing but demands which a simulated deployment does not meet."""
    only = ConflictSet(
        demands=demands, criterion=Criterion.SIMULATION, is_minimal=False, text=text, changes=()
    )
    return Conflict(sets=(only,), fix=())
