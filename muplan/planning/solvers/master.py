"""The linear master programme: which share of which groups serves the demand at least cost.

Its columns are groups: a group type, the services it hosts, and the rates it carries. There are far too
many to list, so `muplan.planning.solvers.pricing` adds those of negative reduced cost until there are
none (Dantzig and Wolfe, 1960; Desaulniers, Desrosiers and Solomon, *Column Generation*, 2005). The
programme then bounds every plan: no integer number of groups costs less. At any prices π of requests
and σ of rows,

    L = Σ_i min_z (π_i − value_i) z_i + Σ_rows σ · limit + Σ_pools GPUs · min(0, least reduced cost per GPU)

is such a bound (Lagrange), so a run that is cut short still proves something.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from muplan.errors import SolverError
from muplan.planning.solvers.pricing import Priced, Pricer, Prices
from muplan.planning.solvers.rows import HostingRow, TypeRow, hosting_rows, type_rows
from muplan.planning.stated.model import LEAST_ADMITTED, Floats, Integers, PlanningModel
from muplan.workload import Goal

_TOLERANCE = 1e-7
"""Reduced costs above this part of the objective are none."""
_MAX_ROUNDS = 500
_ADDED_PER_ROUND = 150
_FIRST_PENALTY, _PENALTY_STEP, _PENALTY_STEPS = 4.0, 10.0, 4
_SMOOTHING = 0.6
"""Weight of the prices of the best bound in those that are priced (Wentges, 1997)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Column:
    """A group: its type's number, the members it hosts, and the rate it carries for each, requests/s."""

    type: int
    members: Integers
    rates_rps: Floats

    @property
    def hosted(self) -> tuple[int, tuple[int, ...]]:
        """What tells sets of hosted services apart: the type and its members."""
        return self.type, tuple(self.members.tolist())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relaxation:
    """The linear relaxation of a model.

    Parameters
    ----------
    feasible
        Whether it has a solution at all.
    bound
        No plan has a smaller objective, as `muplan.planning.solvers.incumbent.Incumbent` states it.
    value
        The objective over the columns that were generated; the bound, where none is missing.
    prices
        Prices at which the bound holds.
    row_prices
        The price of every row by its name: what one more unit of it changes the objective.
    columns, levels, reduced_costs
        Columns of the master programme, how many groups of each it takes, and what one more would cost.
    """

    feasible: bool
    bound: float
    value: float
    prices: Prices
    row_prices: dict[str, float]
    columns: tuple[Column, ...]
    levels: Floats
    reduced_costs: Floats

    def nearest(self, most: int) -> list[Column]:
        """The columns of least reduced cost, those in use first."""
        order = np.lexsort((self.reduced_costs, self.levels <= 0.0))
        return [self.columns[place] for place in order[:most]]


def relax(
    model: PlanningModel,
    pricer: Pricer,
    *,
    columns: Iterable[Column] = (),
    rows: Sequence[TypeRow] = (),
    cutoff: float = math.inf,
    tolerance: float = _TOLERANCE,
) -> Relaxation:
    """Solve the linear relaxation of a model by column generation.

    Parameters
    ----------
    columns
        Columns to start with.
    rows
        Further rows that count groups by type.
    cutoff
        Stop once the bound is above: nothing better than what is known can come of it.
    tolerance
        Stop once the bound is this near to the value, as a part of it: the last columns bring little.
    """
    master = _Master(model, pricer, (*type_rows(model), *rows), hosting_rows(model))
    master.add(columns)
    master.tolerance = max(tolerance, _TOLERANCE)
    for step in range(_PENALTY_STEPS):
        found = master.generate(cutoff)
        if found.feasible or found.bound >= cutoff:
            return found
        master.raise_penalties(_PENALTY_STEP ** (step + 1))
    master.minimise_unserved()
    master.tolerance = _TOLERANCE
    if master.generate(math.inf).value > _TOLERANCE:
        return found
    master.minimise_cost(_PENALTY_STEP ** (_PENALTY_STEPS + 2))
    return master.generate(cutoff)


def least_unserved(model: PlanningModel, pricer: Pricer) -> Relaxation:
    """The relaxation in which nothing counts but what goes unserved, whatever it costs.

    Its bound above 0 proves that no solution serves the demand within the rows.
    """
    master = _Master(model, pricer, type_rows(model), hosting_rows(model))
    master.minimise_unserved()
    master.tolerance = _TOLERANCE
    return master.generate(math.inf)


class _Master:
    """A linear master programme that grows."""

    def __init__(
        self,
        model: PlanningModel,
        pricer: Pricer,
        rows: Sequence[TypeRow],
        hosting: Sequence[HostingRow],
    ) -> None:
        from highspy import Highs

        self._model, self._pricer = model, pricer
        self._rows, self._hosting = rows, hosting
        self._limits: list[TypeRow | HostingRow] = [*rows, *hosting]
        self._columns: list[Column] = []
        self.tolerance = _TOLERANCE
        self._known: set[tuple[int, bytes, bytes]] = set()
        self._services = {name: number for number, name in enumerate(model.rates_rps)}
        self._hosting_service = np.array([self._services[row.service] for row in hosting], dtype=np.int64)
        self._demand_rps = np.array(list(model.rates_rps.values()))
        self._power, self._worth = model.watt_cost, _worth(model)
        self._weights = np.array([row.weight for row in rows]).reshape(len(rows), len(model.group_types))
        self._pool_gpus = np.array([pool.num_free for pool in model.pools], dtype=float)
        self._penalty = _FIRST_PENALTY * dearest_service(model, pricer)
        self._highs = Highs()
        self._highs.setOptionValue("output_flag", False)
        self._highs.setOptionValue("threads", 1)
        self._build()

    def _build(self) -> None:
        """Rows; demand that goes unserved, at a penalty; what is admitted, where that is free."""
        highs, num = self._highs, len(self._demand_rps)
        free = self._model.admits_part
        for rate in self._demand_rps:
            highs.addRow(0.0 if free else rate, math.inf, 0, [], [])
        for row in self._limits:
            highs.addRow(row.lower, row.upper, 0, [], [])
        floor_rps = self._model.goodput_floor_rps
        if floor_rps > 0:
            highs.addRow(floor_rps, math.inf, 0, [], [])
        for number in range(num):
            highs.addCol(self._penalty, 0.0, math.inf, 1, [number], [1.0])
        # Rows that no group is in yet, or that no group could keep, must not make the programme infeasible.
        wanted = [(place, 1.0) for place, row in enumerate(self._limits) if row.lower > 0]
        wanted += [(place, -1.0) for place, row in enumerate(self._limits) if row.upper < 0]
        for place, sign in wanted:
            highs.addCol(self._penalty, 0.0, math.inf, 1, [num + place], [sign])
        self._num_penalised = num + len(wanted)
        self._num_fixed = self._num_penalised + (self._add_admitted() if free else 0)

    def _add_admitted(self) -> int:
        """The admitted part of every demand, or one factor common to all; how many columns that takes."""
        highs, num = self._highs, len(self._demand_rps)
        if self._model.goal is Goal.RATE:
            highs.addCol(-self._worth, 0.0, 1.0, num, list(range(num)), list(-self._demand_rps))
            return 1
        last = highs.getNumRow() - 1
        for number, rate in enumerate(self._demand_rps):
            rows, entries = [number], [-1.0]
            if self._model.goodput_floor_rps > 0:
                rows, entries = [number, last], [-1.0, 1.0]
            highs.addCol(-self._worth, LEAST_ADMITTED * rate, rate, len(rows), rows, entries)
        return num

    def add(self, columns: Iterable[Column]) -> bool:
        """Add columns; whether any was not there already."""
        new = [column for column in columns if self._is_new(column)]
        if not new:
            return False
        entries = [self._entries(column) for column in new]
        lengths = [len(rows) for rows, _ in entries]
        self._highs.addCols(
            len(new),
            np.array([self._cost(column) for column in new]),
            np.zeros(len(new)),
            np.full(len(new), math.inf),
            sum(lengths),
            np.cumsum([0, *lengths[:-1]]).astype(np.int32),
            np.concatenate([rows for rows, _ in entries]).astype(np.int32),
            np.concatenate([values for _, values in entries]),
        )
        self._columns += new
        return True

    def _is_new(self, column: Column) -> bool:
        key = column.type, column.members.tobytes(), np.round(column.rates_rps, 9).tobytes()
        if key in self._known:
            return False
        self._known.add(key)
        return True

    def _entries(self, column: Column) -> tuple[Integers, Floats]:
        """Rows that a group is in, and how much it counts there."""
        service = self._pricer.services(column.type, column.members)
        serves, weights = column.rates_rps > 0, self._weights[:, column.type]
        first = len(self._demand_rps)
        is_hosted = np.zeros(first, dtype=np.bool_)
        is_hosted[service] = True
        counted, limited = np.flatnonzero(weights), np.flatnonzero(is_hosted[self._hosting_service])
        rows = [service[serves], first + counted, first + len(self._rows) + limited]
        return np.concatenate(rows), np.concatenate(
            [column.rates_rps[serves], weights[counted], np.ones(len(limited))]
        )

    def _cost(self, column: Column) -> float:
        standing_w = self._pricer.standing_w[column.type]
        energy_j = self._pricer.energy_j(column.type, column.members)
        return self._power * float(standing_w + energy_j @ column.rates_rps)

    def raise_penalties(self, factor: float) -> None:
        """Make unserved demand ``factor`` times as dear as at first."""
        for index in range(self._num_penalised):
            self._highs.changeColCost(index, self._penalty * factor)

    def minimise_unserved(self) -> None:
        """Let nothing count but what goes unserved."""
        self._power = self._worth = 0.0
        for index in range(self._highs.getNumCol()):
            self._highs.changeColCost(index, 1.0 if index < self._num_penalised else 0.0)

    def minimise_cost(self, factor: float) -> None:
        """Let costs count again, unserved demand ``factor`` times its first penalty."""
        self._power, self._worth = self._model.watt_cost, _worth(self._model)
        for index in range(self._num_penalised, self._num_fixed):
            self._highs.changeColCost(index, -self._worth)
        for place, column in enumerate(self._columns):
            self._highs.changeColCost(self._num_fixed + place, self._cost(column))
        self.raise_penalties(factor)

    def generate(self, cutoff: float) -> Relaxation:
        """Add columns until none has a negative reduced cost, or the bound is above ``cutoff``."""
        bound, best = -math.inf, None
        for _ in range(_MAX_ROUNDS):
            value, duals = self._solve()
            centre = duals if best is None else _SMOOTHING * best + (1.0 - _SMOOTHING) * duals
            added = False
            for point in (centre, duals) if best is not None else (duals,):
                prices = self._prices(point)
                priced = self._pricer.best_groups(prices, _ADDED_PER_ROUND)
                reached = self._lagrangian(point, priced)
                if reached > bound:
                    bound, best = reached, point
                added = self._add_best(priced, prices, value)
                if added:
                    break
            if not added or bound >= min(cutoff, value - self.tolerance * max(1.0, abs(value))):
                break
        value, duals = self._solve()
        return self._relaxation(value, bound, duals if best is None else best)

    def _solve(self) -> tuple[float, Floats]:
        from highspy import HighsModelStatus

        self._highs.run()
        if self._highs.getModelStatus() != HighsModelStatus.kOptimal:
            raise SolverError(
                f"HiGHS ended a linear programme with the status {self._highs.getModelStatus().name}.",
                "This is a fault of muplan; report the workload.",
            )
        return float(self._highs.getObjectiveValue()), np.array(self._highs.getSolution().row_dual)

    def _prices(self, duals: Floats) -> Prices:
        num, kinds = len(self._demand_rps), len(self._rows)
        hosted = np.zeros(num)
        for row, price in zip(self._hosting, duals[num + kinds :], strict=False):
            hosted[self._services[row.service]] += price
        return Prices(
            service_rps=duals[:num],
            service_hosted=hosted,
            group=self._power * self._pricer.standing_w - duals[num : num + kinds] @ self._weights,
            power=self._power,
        )

    def _add_best(self, priced: Priced, prices: Prices, value: float) -> bool:
        """Add the groups of least reduced cost; whether any was new."""
        below = -_TOLERANCE * max(1.0, abs(value))
        order = np.argsort(priced.reduced_cost, kind="stable")[:_ADDED_PER_ROUND]
        chosen = [int(number) for number in order[priced.reduced_cost[order] < below]]
        return self.add(
            Column(
                type=number,
                members=priced.hosted[number],
                rates_rps=self._pricer.fill(number, priced.hosted[number], prices),
            )
            for number in chosen
        )

    def _lagrangian(self, duals: Floats, priced: Priced) -> float:
        """The bound that given prices prove."""
        num = len(self._demand_rps)
        bound = self._admitted_worth(duals)
        for row, price in zip(self._limits, duals[num:], strict=False):
            limit = row.lower if price > 0 else row.upper
            bound += 0.0 if price == 0.0 else float(price) * limit
        least = np.zeros(len(self._pool_gpus))
        np.minimum.at(least, self._pricer.pool, priced.lower_bound / self._pricer.gpus)
        return bound + float(self._pool_gpus @ least)

    def _admitted_worth(self, duals: Floats) -> float:
        """What the demand earns: all of it, or the part of it that is best admitted."""
        num, model = len(self._demand_rps), self._model
        price = duals[:num]
        if not model.admits_part:
            return float(price @ self._demand_rps)
        if model.goal is Goal.RATE:
            return min(0.0, float(price @ self._demand_rps) - self._worth)
        floor_price = float(duals[-1]) if model.goodput_floor_rps > 0 else 0.0
        gain = price - self._worth - floor_price
        admitted = np.where(gain > 0, LEAST_ADMITTED, 1.0) * self._demand_rps
        return float(gain @ admitted) + floor_price * model.goodput_floor_rps

    def _relaxation(self, value: float, bound: float, duals: Floats) -> Relaxation:
        last = self._highs.getSolution()
        solution = np.array(last.col_value)
        unserved = float(solution[: self._num_penalised].sum())
        names = [f"demand_served_{name}" for name in self._services]
        names += [row.name for row in self._limits]
        return Relaxation(
            feasible=unserved <= 1e-7 * max(1.0, float(self._demand_rps.sum())),
            bound=bound,
            value=value,
            prices=self._prices(duals),
            row_prices={name: float(price) for name, price in zip(names, last.row_dual, strict=False)},
            columns=tuple(self._columns),
            levels=solution[self._num_fixed :],
            reduced_costs=np.array(last.col_dual[self._num_fixed :]),
        )


def _worth(model: PlanningModel) -> float:
    """What an admitted request per second is worth, or the factor common to all demands."""
    return 1.0 if model.goal is Goal.RATE else model.request_worth


def dearest_service(model: PlanningModel, pricer: Pricer) -> float:
    """The most that a request per second of some service can be worth.

    Where power counts, the highest, over the services, of the least that it costs alone on a group.
    """
    if model.goal is Goal.RATE:
        return max((1.0 / rate for rate in model.rates_rps.values() if rate > 0), default=1.0)
    if model.watt_cost <= 0:
        return 1.0
    known = pricer.cheapest_w[np.isfinite(pricer.cheapest_w)]
    return float(known.max()) if len(known) else 1.0
