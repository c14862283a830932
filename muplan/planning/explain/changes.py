"""Changes to a workload that make conflicting demands feasible, the smallest of every kind.

The size of a change is relative to what is there: the part of the demand that goes, the part by which a
limit, a cap or a fleet grows. A service or limit that is left out goes whole, which is 1 and comes last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from muplan.hardware.fleet import Pool
from muplan.planning.explain.demands import Demand, changed, with_services
from muplan.planning.explain.feasibility import Answer
from muplan.problem.problem import Problem, ResolvedService
from muplan.serde import Part

Judge = Callable[[Problem], Answer]

_LEAST_DEMAND = 0.01
_LOOSEST = 1024.0
_HIGHEST_CAP = 16.0
_LARGEST_FLEET = 16


class ChangeKind(StrEnum):
    """What is changed."""

    SCALE_DEMAND = "scale-demand"
    LOOSEN_LIMIT = "loosen-limit"
    ADD_GPUS = "add-gpus"
    RAISE_CAP = "raise-cap"
    DROP = "drop"


class Change(Part):
    """A change of a workload, seen to make demands feasible."""

    kind: ChangeKind
    size: float
    """Relative to what is there."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """A change, and how to make it."""

    change: Change
    apply: Callable[[Problem], Problem]


def find_repairs(
    problem: Problem, demands: Sequence[Demand], judge: Judge, *, precision: float
) -> list[Repair]:
    """The smallest change of every kind that makes a problem feasible; the smallest first, leaving out last.

    Parameters
    ----------
    demands
        What conflicts: services and limits of the problem that may be changed. Of the services only the
        last, the largest, is offered to be left out.
    judge
        Says what is feasible.
    precision
        A change is smallest to this ratio: between it and one that does not help.
    """

    def holds(apply: Callable[[Problem], Problem]) -> bool:
        return judge(apply(problem)) is Answer.FEASIBLE

    names = [item.subject for item in demands if item.is_service]
    found = [
        _scaled(names, holds, precision),
        _loosened(problem, names, holds, precision),
        *(_enlarged(pool, holds) for pool in problem.pools),
        _raised(problem, demands, holds, precision),
        *(_dropped(item, holds) for item in demands if not item.is_service or item is demands[-1]),
    ]
    repairs = [item for item in found if item is not None]
    return sorted(repairs, key=lambda item: (item.change.kind is ChangeKind.DROP, item.change.size))


def combined(
    problem: Problem, repairs: Sequence[Repair], demands: Sequence[Demand], judge: Judge, *, precision: float
) -> list[Repair]:
    """Repairs that together make a problem feasible; none where that is not found.

    They are all of the given ones; or, where these get in each other's way, those that neither scale demand
    nor raise a cap, and the smallest single one for all of ``demands`` on top of them.
    """
    unique = list({repair.change.text: repair for repair in repairs}.values())
    if judge(applied(problem, unique)) is Answer.FEASIBLE:
        return unique
    shared = (ChangeKind.SCALE_DEMAND, ChangeKind.RAISE_CAP)
    kept = [repair for repair in unique if repair.change.kind not in shared]
    last = find_repairs(applied(problem, kept), demands, judge, precision=precision)
    return [*kept, *last[:1]] if last else []


def applied(problem: Problem, repairs: Sequence[Repair]) -> Problem:
    """The problem with repairs made."""
    for repair in repairs:
        problem = repair.apply(problem)
    return problem


Holds = Callable[[Callable[[Problem], Problem]], bool]


def _smallest_factor(holds: Callable[[float], bool], most: float, precision: float) -> float | None:
    """The smallest factor above 1 that holds, to a ratio; None where ``most`` does not."""
    if not holds(most):
        return None
    low, high = 1.0, most
    while high / low > precision:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _scaled(names: Sequence[str], holds: Holds, precision: float) -> Repair | None:
    if not names:
        return None

    def apply(factor: float) -> Callable[[Problem], Problem]:
        return lambda problem: _with(problem, names, lambda service: service.scaled(1.0 / factor))

    factor = _smallest_factor(lambda value: holds(apply(value)), 1.0 / _LEAST_DEMAND, precision)
    if factor is None:
        return None
    text = f"Scale the demand of {', '.join(names)} by {_floor(1.0 / factor)}."
    change = Change(kind=ChangeKind.SCALE_DEMAND, size=1.0 - 1.0 / factor, text=text)
    return Repair(change=change, apply=apply(factor))


def _loosened(problem: Problem, names: Sequence[str], holds: Holds, precision: float) -> Repair | None:
    if not names:
        return None

    def apply(factor: float) -> Callable[[Problem], Problem]:
        return lambda other: loosened(other, names, factor)

    factor = _smallest_factor(lambda value: holds(apply(value)), _LOOSEST, precision)
    if factor is None:
        return None
    change = Change(
        kind=ChangeKind.LOOSEN_LIMIT, size=factor - 1.0, text=_loosening_text(problem, names, factor)
    )
    return Repair(change=change, apply=apply(factor))


def loosened(problem: Problem, names: Sequence[str], factor: float) -> Problem:
    """The problem with the latency limits of some services ``factor`` times as long."""
    return _with(problem, names, lambda service: _loosen(service, factor))


def _loosen(service: ResolvedService, factor: float) -> ResolvedService:
    limits = service.limits
    return replace(
        service,
        limits=replace(
            limits,
            latency_s=limits.latency_s * factor,
            ttft_s=limits.ttft_s * factor,
            tpot_s=limits.tpot_s * factor,
        ),
    )


def _loosening_text(problem: Problem, names: Sequence[str], factor: float) -> str:
    limits = problem.service(names[0]).limits
    if len(names) > 1 or math.isinf(limits.latency_s):
        return f"Loosen the limits of {', '.join(names)} by {100 * (factor - 1):.3g} %."
    return f"Loosen the latency limit of {names[0]} to {limits.latency_s * factor:.3g} s."


def _enlarged(pool: Pool, holds: Holds) -> Repair | None:
    """The fewest further GPUs of a pool that help; None where sixteen times as many do not."""

    def apply(more: int) -> Callable[[Problem], Problem]:
        return lambda problem: with_pool(
            problem, pool.name, {"num_gpus": problem.pool(pool.name).num_gpus + more}
        )

    low, high = 0, 1
    while not holds(apply(high)):
        low, high = high, 2 * high
        if high > _LARGEST_FLEET * pool.num_gpus:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(apply(middle)) else (middle, high)
    text = f"Add {high} GPU{'s' if high > 1 else ''} to {pool.name}."
    change = Change(kind=ChangeKind.ADD_GPUS, size=high / pool.num_gpus, text=text)
    return Repair(change=change, apply=apply(high))


def _raised(problem: Problem, demands: Sequence[Demand], holds: Holds, precision: float) -> Repair | None:
    """The lowest cap on the fleet that helps, where its cap is among what conflicts."""
    cap_w = problem.workload.fleet.power_cap_w
    if cap_w is None or not any(item.subject == "fleet" and not item.is_service for item in demands):
        return None

    def raised_w(factor: float) -> float:
        return float(math.ceil(cap_w * factor))

    def apply(factor: float) -> Callable[[Problem], Problem]:
        return lambda other: _with_fleet(other, {"power_cap_w": raised_w(factor)})

    factor = _smallest_factor(lambda value: holds(apply(value)), _HIGHEST_CAP, precision)
    if factor is None:
        return None
    change = Change(
        kind=ChangeKind.RAISE_CAP,
        size=raised_w(factor) / cap_w - 1.0,
        text=f"Raise the fleet's cap to {raised_w(factor):g} W.",
    )
    return Repair(change=change, apply=apply(factor))


def _dropped(demand: Demand, holds: Holds) -> Repair | None:
    if not holds(demand.without):
        return None
    limit = "" if demand.is_service else f", which {demand.text}"
    text = f"Leave out {'' if demand.is_service else 'the limit on '}{demand.subject}{limit}."
    return Repair(
        change=Change(kind=ChangeKind.DROP, size=1.0, text=text),
        apply=demand.without,
    )


def _with(
    problem: Problem, names: Sequence[str], change: Callable[[ResolvedService], ResolvedService]
) -> Problem:
    """The problem with some services changed."""

    def services() -> Iterator[ResolvedService]:
        for service in problem.services:
            yield change(service) if service.name in names else service

    return with_services(problem, services())


def _with_fleet(problem: Problem, update: dict[str, object]) -> Problem:
    workload = problem.workload
    return changed(problem, workload.model_copy(update={"fleet": workload.fleet.model_copy(update=update)}))


def with_pool(problem: Problem, name: str, update: dict[str, object]) -> Problem:
    """The problem with fields of one pool replaced."""
    pools = tuple(pool.model_copy(update=update) if pool.name == name else pool for pool in problem.pools)
    return _with_fleet(problem, {"pools": pools})


def _floor(share: float) -> str:
    """A share to three digits, never above it."""
    digits = 2 - math.floor(math.log10(share))
    return f"{math.floor(share * 10**digits) / 10**digits:.3g}"
