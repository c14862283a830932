"""Rates for given groups: the linear programme that is left when the counts are fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from muplan.errors import SolverError
from muplan.planning.stated.model import LEAST_ADMITTED, Configuration, PlanningModel, Use, power_of
from muplan.workload import Goal

Groups = tuple[Configuration, int]
"""A configuration, and how many groups of it."""

_SPREAD_COST = 1e-3
_FLOOR_PENALTY = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """Rates that given groups carry, requests per second.

    ``unserved_rps`` is what all goes unserved; ``shut_out_rps`` the part of it that no plan may leave.
    """

    uses: tuple[Use, ...]
    unserved_rps: float
    shut_out_rps: float


def best_rates(model: PlanningModel, groups: Sequence[Groups]) -> Carried:
    """Rates of least energy that serve as much of the demand as the groups can.

    Parameters
    ----------
    groups
        Configurations, and how many groups of each.

    Notes
    -----
    Unserved demand costs more than any energy, so it is left only where capacity is short; where energy
    per request counts, a request is served where it takes less energy than it is worth. Where a common
    factor counts, no service is served a larger part of its demand than another. Of several optima the one
    found by HiGHS's dual simplex method is returned; it is deterministic.
    """
    used = [(configuration, count) for configuration, count in groups if count > 0]
    if model.goal is Goal.RATE:
        return _even_rates(model, used)
    services = {name: row for row, name in enumerate(model.rates_rps)}
    columns = [
        (len(services) + row, configuration.load_s(hosting), hosting)
        for row, (configuration, _) in enumerate(used)
        for hosting in configuration.hostings
    ]
    energy = [hosting.energy_j for _, _, hosting in columns]
    # What goes unserved costs more than any energy, or what it is worth; the least that must be admitted,
    # far more.
    penalty = 10.0 * (max(energy, default=0.0) + 1.0)
    by_worth = model.goal is Goal.ENERGY_PER_REQUEST and model.goodput_floor_rps <= 0
    unserved = model.request_worth_j if by_worth else penalty
    num, demand = len(columns), np.array(list(model.rates_rps.values()))
    unbounded = np.full(num, np.inf)
    program = _Program(
        cost=np.array(
            energy + [unserved] * len(services) + [_FLOOR_PENALTY * (penalty + unserved)] * len(services)
        ),
        upper=np.concatenate([unbounded, (1.0 - LEAST_ADMITTED) * demand, LEAST_ADMITTED * demand]),
        row_lower=np.array([*demand, *([-np.inf] * len(used))]),
        row_upper=np.array([*demand, *(float(count) for _, count in used)]),
        # Every rate stands in its service's row and its configuration's; what goes unserved in the first.
        start=np.concatenate([2 * np.arange(num), 2 * num + np.arange(2 * len(services) + 1)]).astype(
            np.int32
        ),
        index=np.array(
            [row for takes, _, item in columns for row in (services[item.service], takes)]
            + 2 * list(services.values()),
            dtype=np.int32,
        ),
        value=np.array(
            [entry for _, load, _ in columns for entry in (1.0, load)] + [1.0] * (2 * len(services))
        ),
    )
    values = np.maximum(program.solve(), 0.0)
    return Carried(
        uses=_uses(used, values),
        unserved_rps=float(values[num:].sum()),
        shut_out_rps=float(values[num + len(services) :].sum()),
    )


def _even_rates(model: PlanningModel, used: Sequence[Groups]) -> Carried:
    """Rates that carry the largest part of the demand that is the same for every service."""
    services = {name: row for row, name in enumerate(model.rates_rps)}
    columns = [
        (services[hosting.service], len(services) + row, configuration.load_s(hosting))
        for row, (configuration, _) in enumerate(used)
        for hosting in configuration.hostings
    ]
    num, demand = len(columns), np.array(list(model.rates_rps.values()))
    program = _Program(
        cost=np.array([0.0] * num + [-1.0]),
        upper=np.array([np.inf] * num + [1.0]),
        row_lower=np.array([0.0] * len(services) + [-np.inf] * len(used)),
        row_upper=np.array([0.0] * len(services) + [float(count) for _, count in used]),
        start=np.append(2 * np.arange(num + 1), 2 * num + len(services)).astype(np.int32),
        index=np.array(
            [row for served, takes, _ in columns for row in (served, takes)] + list(services.values()),
            dtype=np.int32,
        ),
        value=np.concatenate([[entry for _, _, load in columns for entry in (1.0, load)], -demand]),
    )
    values = np.maximum(program.solve(), 0.0)
    unserved = float((1.0 - values[num]) * demand.sum())
    return Carried(
        uses=_uses(used, values),
        unserved_rps=unserved,
        shut_out_rps=0.0 if values[num] >= LEAST_ADMITTED else unserved,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Program:
    """A linear programme over variables from 0 on, by columns: column j has entries start[j]:start[j + 1]."""

    cost: NDArray[np.float64]
    upper: NDArray[np.float64]
    row_lower: NDArray[np.float64]
    row_upper: NDArray[np.float64]
    start: NDArray[np.int32]
    index: NDArray[np.int32]
    value: NDArray[np.float64]

    def solve(self) -> NDArray[np.float64]:
        """The optimal variables.

        Raises
        ------
        SolverError
            HiGHS found no optimum.
        """
        from highspy import Highs, HighsLp, HighsModelStatus, MatrixFormat

        programme = HighsLp()
        programme.num_col_, programme.num_row_ = len(self.cost), len(self.row_lower)
        programme.col_cost_ = self.cost
        programme.col_lower_ = np.zeros(len(self.cost))
        programme.col_upper_ = self.upper
        programme.row_lower_, programme.row_upper_ = self.row_lower, self.row_upper
        programme.a_matrix_.format_ = MatrixFormat.kColwise
        programme.a_matrix_.start_ = self.start
        programme.a_matrix_.index_ = self.index
        programme.a_matrix_.value_ = self.value
        highs = Highs()
        highs.setOptionValue("output_flag", False)
        highs.setOptionValue("threads", 1)
        highs.passModel(programme)
        highs.run()
        if highs.getModelStatus() != HighsModelStatus.kOptimal:
            raise SolverError(
                "HiGHS found no rates for given groups.", "This is a fault of muplan; report the workload."
            )
        return np.array(highs.getSolution().col_value)


def spread_rates(model: PlanningModel, uses: Sequence[Use]) -> tuple[Use, ...]:
    """Spread every service over the groups that host it, as evenly as costs almost nothing.

    The optimum of the linear programme sends a service to as few groups as it can; requests wait
    less where more groups can take them. So the least share of a service on any group that hosts it
    is maximised, at no more than a thousandth above the least power.
    """
    from scipy.optimize import linprog

    columns = [(row, hosting) for row, use in enumerate(uses) for hosting in use.configuration.hostings]
    rates = np.array([rate for use in uses for rate in use.rates_rps])
    energy = np.array([hosting.energy_j for _, hosting in columns])
    limit_w = float(energy @ rates) + _SPREAD_COST * power_of(model, tuple(uses))
    carried = dict.fromkeys(model.rates_rps, 0.0)
    groups = dict.fromkeys(model.rates_rps, 0)
    for (row, hosting), rate in zip(columns, rates, strict=True):
        carried[hosting.service] += float(rate)
        groups[hosting.service] += uses[row].count
    num = len(columns)
    capacity = np.zeros((len(uses), num + 1))
    even = np.zeros((num, num + 1))
    served = np.zeros((len(carried), num + 1))
    for column, (row, hosting) in enumerate(columns):
        capacity[row, column] = uses[row].configuration.load_s(hosting)
        even[column, column] = -1.0
        even[column, num] = carried[hosting.service] * uses[row].count / groups[hosting.service]
        served[list(carried).index(hosting.service), column] = 1.0
    result = linprog(
        [0.0] * num + [-1.0],
        A_ub=np.vstack([capacity, even, np.append(energy, 0.0)]),
        b_ub=[*(use.count * (1.0 + 1e-9) for use in uses), *([0.0] * num), limit_w],
        A_eq=served,
        b_eq=list(carried.values()),
        bounds=[(0, None)] * num + [(0, 1)],
        method="highs-ds",
    )
    if result.x is None:
        return tuple(uses)
    values = iter(np.maximum(result.x[:num], 0.0))
    return tuple(
        replace(use, rates_rps=tuple(float(next(values)) for _ in use.configuration.hostings)) for use in uses
    )


def _uses(used: Sequence[Groups], values: NDArray[np.float64]) -> tuple[Use, ...]:
    uses = []
    position = 0
    for configuration, count in used:
        rates = values[position : position + len(configuration.hostings)]
        position += len(configuration.hostings)
        uses.append(
            Use(configuration=configuration, count=count, rates_rps=tuple(float(rate) for rate in rates))
        )
    return tuple(uses)


def serves_enough(model: PlanningModel, carried: Carried) -> bool:
    """Whether nothing is left unserved that the goal demands."""
    total = sum(model.rates_rps.values())
    left = carried.shut_out_rps if model.admits_part else carried.unserved_rps
    return left <= 1e-7 * total and total - carried.unserved_rps >= model.goodput_floor_rps - 1e-7 * total
