"""The greedy solver: group by group, always the one that is worth most for what it costs.

Worth and cost are those of the linear relaxation: a price for every request per second, and for the GPUs
and the peak power that a group takes beside its own. So it knows what AlpaServe's placement (Li et al.,
OSDI'23, §4.2) learns from a simulator: which service is hard to serve, and what else its GPUs could do.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from muplan.plan import Status
from muplan.planning.solvers.goals import Outcome, optimise
from muplan.planning.solvers.incumbent import (
    NOTHING,
    ColumnPool,
    Incumbent,
    evaluate,
    merged,
    residual,
    use_of,
)
from muplan.planning.solvers.master import Column, Relaxation, relax
from muplan.planning.solvers.polish import dive
from muplan.planning.solvers.pricing import Pricer
from muplan.planning.solvers.restricted import Effort, choose_groups
from muplan.planning.solvers.rows import type_rows
from muplan.planning.solvers.solver import Report, no_solution
from muplan.planning.stated.model import Floats, PlanningModel, Solution, Use, power_of
from muplan.workload import Goal

_LAST_RESORT = Effort(gap=1e-2, max_nodes=200, time_limit_s=20.0, seed=0)
"""Where group by group leads nowhere: what may be spent on rounding the relaxation."""

_COLUMNS = 250
"""Sets of services near the relaxation, among which the highest common rate is sought."""

_SERVED = 1e-9
"""Part of the whole demand that may be left to rounding."""


def solve_greedy(
    model: PlanningModel, *, time_limit_s: float, seed: int, report: Report | None = None
) -> Solution:
    """Solve a model greedily; the bound is that of its linear relaxation.

    Parameters
    ----------
    time_limit_s
        Not needed: every step adds a group; a last resort has a limit of its own.
    seed
        Recorded; the method draws no random numbers.
    report
        Not needed: it is done at once.
    """
    del time_limit_s, report
    found = optimise(model, _minimise)
    if not found.incumbent.uses:
        status = Status.INFEASIBLE if found.is_infeasible else Status.TIME_LIMIT
        return no_solution("greedy", status, seed)
    return Solution(
        solver="greedy",
        status=Status.FEASIBLE,
        achieved=found.achieved,
        power_w=power_of(model, found.incumbent.uses),
        uses=found.incumbent.uses,
        seed=seed,
    )


def _minimise(model: PlanningModel, start: Incumbent) -> Outcome:
    """Groups one after the other; where that leads nowhere, the relaxation rounded; or the start."""
    pricer = Pricer(model)
    root = relax(model, pricer) if model.group_types else None
    if root is None or not root.feasible:
        return Outcome(incumbent=NOTHING, bound=math.inf)
    pool = ColumnPool(model, pricer)
    if model.goal is Goal.RATE:
        offered = pool.nearest(root, _COLUMNS, math.inf)
        found = evaluate(model, choose_groups(model, offered, _LAST_RESORT).groups)
    else:
        found = greedy_groups(model, pricer, pool, root)
        if not found.uses:
            found = dive(model, pricer, pool, root, _LAST_RESORT)
    return Outcome(incumbent=min(found, start, key=lambda item: item.objective), bound=root.bound)


def greedy_groups(model: PlanningModel, pricer: Pricer, pool: ColumnPool, root: Relaxation) -> Incumbent:
    """Groups chosen one after the other; `NOTHING` where they do not serve the demand."""
    settled: list[Use] = []
    rest = model
    while sum(rest.rates_rps.values()) > _SERVED * sum(model.rates_rps.values()):
        chosen = _best_group(rest, pricer.for_demand(rest), root)
        if chosen is None:
            break
        column, count = chosen
        members = pricer.filled_up(column.type, column.members, root.prices)
        settled.append(use_of(model, pool, column, members, count))
        rest = residual(model, settled)
    return evaluate(model, merged((use.configuration, use.count) for use in settled)) if settled else NOTHING


def _best_group(rest: PlanningModel, pricer: Pricer, root: Relaxation) -> tuple[Column, int] | None:
    """The group worth most for its cost among those that still fit, and how many to add at once."""
    free = replace(root.prices, group=np.zeros(pricer.num_types))
    priced = pricer.best_groups(free)
    worth = -priced.reduced_cost
    worth[_room(rest) < 1] = 0.0
    ratio = worth / np.maximum(root.prices.group, 1e-9)
    number = int(ratio.argmax())
    if worth[number] <= 0 or number not in priced.hosted:
        return None
    members = priced.hosted[number]
    rates = pricer.fill(number, members, free)
    form = rest.group_types[number].form
    hosted = [form.hostings[index].service for index in rest.group_types[number].members[members]]
    # A group that carries nothing may still be worth having: one replica more of a service with too few.
    times = min(
        (rest.rates_rps[name] / rate for name, rate in zip(hosted, rates, strict=True) if rate > 0),
        default=1.0,
    )
    count = max(1, min(int(times), int(_room(rest)[number])))
    return Column(type=number, members=members, rates_rps=rates), count


def _room(rest: PlanningModel) -> Floats:
    """How many more groups of each type the rows on types allow; shape (types,)."""
    room = np.full(len(rest.group_types), np.inf)
    for row in type_rows(rest):
        takes = row.weight > 0
        room[takes] = np.minimum(room[takes], (row.upper + 1e-9) / row.weight[takes])
    return np.asarray(np.floor(room))
