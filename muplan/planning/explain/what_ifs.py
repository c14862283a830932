"""What-ifs: the power that one more GPU, longer limits or less demand would save in the stated model.

The guard stays as the plan's search left it, so a difference is that of the model alone. Where the model is
small enough to be solved to its optimum at once, changes of the whole workload are differences of optima;
all others are differences of the linear relaxation, which has no rounding of its own to hide them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from muplan.plan import MarginalValue, Reason, Status, WhatIf
from muplan.planning.explain.changes import loosened, with_pool
from muplan.planning.guard.levels import GuardState
from muplan.planning.search.search import Search
from muplan.planning.search.tuning import make_model
from muplan.planning.solvers.master import relax
from muplan.planning.solvers.pricing import Pricer
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.constraints import slot_widths
from muplan.planning.stated.model import PlanningModel
from muplan.problem.problem import Problem
from muplan.workload import Goal

_PART = 0.1
_PRICED_TO = 1e-5
"""Part of the objective that bound and value of the relaxation whose prices are told may be apart."""
_SOLVED_TYPES = 500
"""Group types up to which a model is solved again."""
_SINGLE_SERVICES = 12
"""Services up to which changes of single ones are tried."""
_NAMED = 2
"""Single services that a sentence names."""

ALL = "all"

Change = Literal["one-more-gpu", "longer-limits", "less-demand"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A change of the workload, and the stated model with it."""

    change: Change
    subject: str
    model: PlanningModel


def what_ifs(search: Search, guard: GuardState) -> tuple[WhatIf, ...]:
    """What changes of the workload would save; those of the whole workload first.

    None where something other than power comes first, or where there is no optimum to compare with.
    """
    problem = search.problem
    if problem.workload.goals[0] is not Goal.POWER:
        return ()
    model = make_model(problem, search.builder, guard)
    relaxation = relax(model, Pricer(model))
    if not relaxation.feasible:
        return ()
    optimum_w = _optimum_w(search, model)
    found = []
    for case in _cases(problem, model, guard):
        after_w = _optimum_w(search, case.model) if optimum_w is not None and _is_whole(case) else None
        if optimum_w is not None and after_w is not None:
            saves_w, is_solved = optimum_w - after_w, True
        else:
            relaxed = relax(case.model, Pricer(case.model))
            saves_w, is_solved = relaxation.bound - relaxed.bound, False
        found.append(
            WhatIf(
                change=case.change,
                subject=case.subject,
                saves_w=saves_w,
                method="solved" if is_solved else "relaxation",
            )
        )
    return tuple(found)


def _is_whole(case: _Case) -> bool:
    return case.subject == ALL or case.change == "one-more-gpu"


def _optimum_w(search: Search, model: PlanningModel) -> float | None:
    """The least power of a small model above the parked fleet; None where it is not proven."""
    if len(model.group_types) > _SOLVED_TYPES:
        return None
    solution = search.solver(model, time_limit_s=search.time_limit_s, seed=search.seed)
    return solution.objective - model.parked_w if solution.status is Status.OPTIMAL else None


def _cases(problem: Problem, model: PlanningModel, guard: GuardState) -> Iterator[_Case]:
    names = [service.name for service in problem.services]
    subjects = [(ALL, names)]
    if 1 < len(names) <= _SINGLE_SERVICES:
        subjects += [(name, [name]) for name in names]
    for pool in problem.pools:
        larger = with_pool(problem, pool.name, {"num_gpus": pool.num_gpus + 1})
        yield _Case(change="one-more-gpu", subject=pool.name, model=_remade(larger, guard))
    for subject, chosen in subjects:
        longer = loosened(problem, chosen, 1.0 + _PART)
        yield _Case(change="longer-limits", subject=subject, model=_remade(longer, guard))
    for subject, chosen in subjects:
        rates = {name: rate * (1 - _PART if name in chosen else 1) for name, rate in model.rates_rps.items()}
        yield _Case(change="less-demand", subject=subject, model=replace(model, rates_rps=rates))


def _remade(problem: Problem, guard: GuardState) -> PlanningModel:
    return make_model(problem, CandidateBuilder(problem), guard)


def in_words(found: Sequence[WhatIf]) -> list[Reason]:
    """What changes of limits and demand would save, a sentence each; of single services those that save most.

    What one more GPU would is said with the marginal values already.
    """
    phrases: dict[Change, str] = {
        "longer-limits": "latency limits 10 % longer would save",
        "less-demand": "10 % less demand would save",
    }
    reasons = []
    for change, phrase in phrases.items():
        mine = [item for item in found if item.change == change]
        single = sorted((item for item in mine if item.subject != ALL), key=lambda item: -item.saves_w)
        parts = [f"{saving(item)} for all services" for item in mine if item.subject == ALL]
        parts += [f"{saving(item)} for {item.subject} alone" for item in single[:_NAMED]]
        if parts:
            text = f"{phrase} {', '.join(parts)} ({basis(mine)})."
            reasons.append(Reason(subject="what if", text=text))
    return reasons


def saving(item: WhatIf) -> str:
    """What a change saves, in words; no less than nothing but for rounding."""
    return f"{round(item.saves_w, 1) + 0.0:.1f} W"


def basis(items: Sequence[WhatIf]) -> str:
    """What says so of some changes."""
    solved = any(item.method == "solved" for item in items)
    return f"modelled, {'solved again' if solved else 'linear relaxation'}"


def marginal_values(model: PlanningModel) -> tuple[MarginalValue, ...]:
    """Prices of the linear relaxation: what one unit more of a constraint's right side adds to the power."""
    if model.goal is not Goal.POWER:
        return ()
    relaxation = relax(model, Pricer(model), tolerance=_PRICED_TO)
    if not relaxation.feasible:
        return ()
    price = relaxation.row_prices
    values = [
        MarginalValue(
            constraint="demand_served",
            subject=service,
            value=price[f"demand_served_{service}"],
            unit="W per request/s",
        )
        for service in model.rates_rps
    ]
    for pool in model.pools:
        per_gpu_w = sum(
            price[f"gpus_available_{pool.name}_{width}"] / width for width in slot_widths(model, pool)
        )
        values.append(
            MarginalValue(constraint="gpus_available", subject=pool.name, value=per_gpu_w, unit="W per GPU")
        )
    subjects = {"power_cap": ("power_cap", "fleet")}
    subjects |= {f"node_power_cap_{pool.name}": ("node_power_cap", pool.name) for pool in model.pools}
    values += [
        MarginalValue(constraint=constraint, subject=subject, value=price[row], unit="W per W")
        for row, (constraint, subject) in subjects.items()
        if row in price
    ]
    return tuple(values)
