"""Whether a planning model has any solution: an exact answer, or none.

Costs play no part. The linear relaxation that minimises unserved demand proves most of what is
impossible; one integer programme over all sets of services that a group could host settles the rest,
where they can be listed; where there are too many, rounding the relaxation finds a solution or nothing.
"""

from __future__ import annotations

import math
from enum import StrEnum

from muplan.plan import Status
from muplan.planning.solvers.incumbent import ColumnPool, evaluate
from muplan.planning.solvers.master import least_unserved, relax
from muplan.planning.solvers.polish import dive
from muplan.planning.solvers.pricing import Pricer, Prices
from muplan.planning.solvers.restricted import Effort, choose_groups
from muplan.planning.solvers.rows import hosting_rows, type_rows
from muplan.planning.stated.model import PlanningModel

_FEW_SETS, _MANY_SETS = 600, 4000
_ANY_GAP = 1e9
"""A relative gap at which a solver of integer programmes stops at its first solution."""
_MAX_NODES = 20_000
_TIME_LIMIT_S = 60.0
_UNSERVED = 1e-6
"""Unserved demand beyond this part of all demand is none that rounding left."""


class Answer(StrEnum):
    """Whether there is a solution."""

    FEASIBLE = "feasible"  # one was found
    INFEASIBLE = "infeasible"  # it is proven that there is none
    UNKNOWN = "unknown"  # neither


def can_serve(model: PlanningModel) -> Answer:
    """Whether any whole numbers of groups serve the demand within the constraints of the model."""
    if any(row.upper < 0 for row in type_rows(model)) or any(row.upper < 0 for row in hosting_rows(model)):
        return Answer.INFEASIBLE
    if not model.rates_rps:
        return Answer.FEASIBLE
    if not model.group_types:
        return Answer.INFEASIBLE
    pricer = Pricer(model)
    least = least_unserved(model, pricer)
    if least.bound > _UNSERVED * sum(model.rates_rps.values()):
        return Answer.INFEASIBLE
    answer = _settled(model, pricer, least.prices, _FEW_SETS)
    if answer is Answer.UNKNOWN and _rounded(model, pricer):
        answer = Answer.FEASIBLE
    return _settled(model, pricer, least.prices, _MANY_SETS) if answer is Answer.UNKNOWN else answer


def _settled(model: PlanningModel, pricer: Pricer, prices: Prices, limit: int) -> Answer:
    """The answer of one integer programme over every maximal set; unknown where there are over ``limit``."""
    listed = pricer.maximal_groups(prices, below=math.inf, limit=limit)
    if listed is None:
        return Answer.UNKNOWN
    pool = ColumnPool(model, pricer)
    offered = [pool.configuration(number, members.tolist()) for number, members in listed]
    found = choose_groups(model, offered, _effort())
    if found.status is Status.INFEASIBLE:
        return Answer.INFEASIBLE
    return Answer.FEASIBLE if found.groups and evaluate(model, found.groups).uses else Answer.UNKNOWN


def _rounded(model: PlanningModel, pricer: Pricer) -> bool:
    """Whether diving from the relaxation finds a solution."""
    root = relax(model, pricer)
    return root.feasible and bool(dive(model, pricer, ColumnPool(model, pricer), root, _effort()).uses)


def _effort() -> Effort:
    return Effort(gap=_ANY_GAP, max_nodes=_MAX_NODES, time_limit_s=_TIME_LIMIT_S, seed=0)
