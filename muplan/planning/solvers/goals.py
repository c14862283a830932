"""Goals in order, each at the best of those before, by a solver that minimises one.

Energy per request is a ratio, power over what is served. Its minimum is found by minimising power less
what the served requests are worth, their worth being the ratio of the best plan so far, until nothing
better is found (Dinkelbach, *On Nonlinear Fractional Programming*, 1967).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from muplan.planning.solvers.incumbent import NOTHING, Incumbent, common_factor, evaluate
from muplan.planning.solvers.master import dearest_service
from muplan.planning.solvers.pricing import Pricer
from muplan.planning.stated.model import LEAST_ADMITTED, Achieved, PlanningModel, power_of
from muplan.workload import Goal

KEPT = 1e-6
"""How far, relative, a goal may fall back for those after it."""

_RATIO_ROUNDS = 8
_RATIO_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one minimisation found; ``bound`` is that of its objective, infinite where there is no plan."""

    incumbent: Incumbent
    bound: float


Minimise = Callable[[PlanningModel, Incumbent], Outcome]
"""Minimises a model's present goal, from a plan that is known (or `NOTHING`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimised:
    """The plan after the last goal, and what was achieved of each; both empty where there is none."""

    incumbent: Incumbent
    achieved: tuple[Achieved, ...]
    is_infeasible: bool


def optimise(model: PlanningModel, minimise: Minimise) -> Optimised:
    """Optimise all goals of a model in order, each at the best of those before."""
    rest, best = model, NOTHING
    achieved: list[Achieved] = []
    for goal in model.goals:
        rest = replace(rest, goals=(goal,))
        found, reached = _STEPS[goal](rest, minimise, best)
        if not found.uses:
            if best is NOTHING:
                return Optimised(incumbent=NOTHING, achieved=(), is_infeasible=math.isinf(reached.bound))
            break
        best = found
        achieved.append(reached)
        rest = _kept(rest, reached)
    return Optimised(incumbent=best, achieved=tuple(achieved), is_infeasible=False)


def _kept(model: PlanningModel, reached: Achieved) -> PlanningModel:
    """The model in which a goal stays as good as was reached."""
    if reached.goal is Goal.GOODPUT:
        return replace(model, goodput_floor_rps=reached.value * (1 - KEPT))
    if reached.goal is Goal.RATE:
        factor = reached.value * (1 - KEPT)
        return replace(model, rates_rps={name: rate * factor for name, rate in model.rates_rps.items()})
    return model


def _least_power(model: PlanningModel, minimise: Minimise, start: Incumbent) -> tuple[Incumbent, Achieved]:
    outcome = minimise(model, evaluate(model, start.groups))
    found = outcome.incumbent
    bound = min(outcome.bound, found.objective) + model.parked_w
    return found, Achieved(goal=Goal.POWER, value=found.objective + model.parked_w, bound=bound)


def _most_goodput(model: PlanningModel, minimise: Minimise, start: Incumbent) -> tuple[Incumbent, Achieved]:
    outcome = minimise(model, evaluate(model, start.groups))
    found = outcome.incumbent
    bound = -min(outcome.bound, found.objective)
    return found, Achieved(goal=Goal.GOODPUT, value=-found.objective, bound=bound)


def _highest_rate(model: PlanningModel, minimise: Minimise, start: Incumbent) -> tuple[Incumbent, Achieved]:
    """The model's factor is at most 1, so the demand is first scaled to what no fleet can exceed."""
    most = largest_factor(model)
    scaled = replace(model, rates_rps={name: rate * most for name, rate in model.rates_rps.items()})
    outcome = minimise(scaled, evaluate(scaled, start.groups))
    found = outcome.incumbent
    bound = -min(outcome.bound, found.objective) * most
    value = common_factor(model, found.uses) if found.uses else math.nan
    return found, Achieved(goal=Goal.RATE, value=value, bound=bound)


def largest_factor(model: PlanningModel) -> float:
    """A factor on the demand beyond which even fractions of GPUs, each used at best, are too few."""
    least = dict.fromkeys(model.rates_rps, math.inf)
    for group_type in model.group_types:
        form = group_type.form
        gpus = form.occupancy_s / group_type.utilisation * form.num_gpus
        for index in group_type.members:
            name = form.hostings[index].service
            least[name] = min(least[name], float(gpus[index]))
    busy = sum(least[name] * rate for name, rate in model.rates_rps.items() if rate > 0)
    return sum(pool.num_free for pool in model.pools) / busy if 0 < busy < math.inf else 1.0


def _least_ratio(model: PlanningModel, minimise: Minimise, start: Incumbent) -> tuple[Incumbent, Achieved]:
    demand_rps = sum(model.rates_rps.values())
    worth_j = dearest_service(model, Pricer(model)) + model.parked_w / demand_rps
    best, ratio, bound = NOTHING, math.inf, -math.inf
    for _ in range(_RATIO_ROUNDS):
        priced = replace(model, request_worth_j=worth_j)
        known = best.groups if best.uses else start.groups
        outcome = minimise(priced, evaluate(priced, known))
        found = outcome.incumbent
        if not found.uses:
            if best is NOTHING:
                bound = outcome.bound
            break
        bound = max(bound, _ratio_bound(priced, min(outcome.bound, found.objective)))
        reached = power_of(model, found.uses) / sum(sum(use.rates_rps) for use in found.uses)
        is_better = reached < ratio * (1 - _RATIO_TOLERANCE)
        if reached < ratio:
            best, ratio = found, reached
        if not is_better:
            break
        worth_j = ratio
    return best, Achieved(goal=Goal.ENERGY_PER_REQUEST, value=ratio, bound=min(bound, ratio))


def _ratio_bound(model: PlanningModel, bound: float) -> float:
    """What energy per request no plan goes below, given that power less worth is never below ``bound``.

    Power is at least ``q S + L`` with ``q`` the worth, ``S`` what is served and ``L`` that bound with the
    parked fleet added, and at least that of the parked fleet. Over ``S`` the greater of the two has its
    least ratio where they meet, or at the least that may be served.
    """
    worth_j, least_w = model.request_worth_j, bound + model.parked_w
    if least_w >= 0:
        return worth_j
    least_rps = max(LEAST_ADMITTED * sum(model.rates_rps.values()), model.goodput_floor_rps)
    meet_rps = (model.parked_w - least_w) / worth_j
    return worth_j + least_w / max(least_rps, meet_rps)


_STEPS = {
    Goal.POWER: _least_power,
    Goal.GOODPUT: _most_goodput,
    Goal.RATE: _highest_rate,
    Goal.ENERGY_PER_REQUEST: _least_ratio,
}
