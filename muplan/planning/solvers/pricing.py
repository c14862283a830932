"""Pricing: the group of every type that is worth most at given prices.

A price for each request per second of a service, and for what a group uses (GPUs, peak power, its
place among the counted replicas), comes from the linear master programme or from anywhere else; the
cheapest group in reduced cost of every type follows from `muplan.planning.solvers.hosting_search`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from muplan.planning.solvers.hosting_search import search_sets
from muplan.planning.stated.model import Floats, Integers, PlanningModel
from muplan.serving.compiled import compiled

MAX_NODES = 20_000
"""Nodes of the search of one type; beyond, its bound is that of the relaxation."""

_TINY = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a group earns and pays.

    Parameters
    ----------
    service_rps
        Earned by each request per second carried; shape (services,).
    service_hosted
        Earned by each group that hosts the service; shape (services,).
    group
        Paid by a group of each type, whatever it hosts; shape (types,).
    power
        Paid for each watt of request energy (1, or 0 where power does not count).
    """

    service_rps: Floats
    service_hosted: Floats
    group: Floats
    power: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """The best group of every type.

    Parameters
    ----------
    reduced_cost
        What the best group found costs less what it earns, at most 0; shape (types,).
    lower_bound
        No group of the type has less; shape (types,).
    hosted
        Members (of the type) that the best group hosts, by its number; absent where none earns its cost.
    """

    reduced_cost: Floats
    lower_bound: Floats
    hosted: Mapping[int, Integers]


class Pricer:
    """The group types of a model as flat tables for the compiled search."""

    def __init__(self, model: PlanningModel) -> None:
        names = {name: number for number, name in enumerate(model.rates_rps)}
        types = model.group_types
        numbers: dict[int, Integers] = {}
        for group_type in types:
            form = group_type.form
            if id(form) not in numbers:
                numbers[id(form)] = np.array([names[item.service] for item in form.hostings], dtype=np.int64)
        stages = max((item.form.num_stages for item in types), default=1)
        self.num_types = len(types)
        self._is_bounded = np.array([name in model.max_replicas for name in model.rates_rps], dtype=np.bool_)
        self._demand_rps = np.array(list(model.rates_rps.values()))
        self._first = np.concatenate([[0], np.cumsum([len(item.members) for item in types])]).astype(np.int64)
        self._stages = np.array([item.form.num_stages for item in types], dtype=np.int64)
        self._capacity_s = np.array([item.utilisation for item in types], dtype=float)
        self._usable_bytes = np.array([item.form.usable_bytes for item in types], dtype=float)
        self._service = _joined([numbers[id(item.form)][item.members] for item in types]).astype(np.int64)
        self._occupancy_s = _joined([item.form.occupancy_s[item.members] for item in types])
        self._energy_j = _joined([item.form.energy_j[item.members] for item in types])
        self._weight_bytes = np.zeros((len(self._service), stages))
        self._working_bytes = np.zeros((len(self._service), stages))
        for (first, last), item in zip(pairwise(self._first), types, strict=True):
            self._weight_bytes[first:last, : item.form.num_stages] = item.form.weight_bytes[item.members]
            self._working_bytes[first:last, : item.form.num_stages] = item.form.working_bytes[item.members]

        self.cheapest_w = self._cheapest_w(np.array([item.form.standing_w for item in types], dtype=float))

    def _cheapest_w(self, standing_w: Floats) -> Floats:
        """The least that a request per second of each service costs alone on a group; shape (services,)."""
        per_type = np.diff(self._first)
        costs = np.repeat(standing_w / self._capacity_s, per_type) * self._occupancy_s + self._energy_j
        least = np.full(len(self._demand_rps), np.inf)
        np.minimum.at(least, self._service, costs)
        return least

    def for_demand(self, model: PlanningModel) -> Pricer:
        """The same tables for a model that differs in its demand alone."""
        other = copy(self)
        other._demand_rps = np.array(list(model.rates_rps.values()))
        return other

    def best_groups(self, prices: Prices) -> Priced:
        """The group of least reduced cost of every type, where that is below 0."""
        most = max(int(np.diff(self._first).max(initial=0)), 1)
        value = np.zeros(self.num_types)
        bound = np.zeros(self.num_types)
        size = np.zeros(self.num_types, dtype=np.int64)
        hosted = np.zeros((self.num_types, most), dtype=np.int64)
        _price_types(
            self._first,
            self._stages,
            self._capacity_s,
            self._usable_bytes,
            self._service,
            self._demand_rps,
            self._occupancy_s,
            self._energy_j,
            self._weight_bytes,
            self._working_bytes,
            prices.service_rps,
            prices.service_hosted,
            prices.group,
            prices.power,
            MAX_NODES,
            value,
            bound,
            size,
            hosted,
        )
        return Priced(
            reduced_cost=prices.group - value,
            lower_bound=prices.group - bound,
            hosted={int(number): np.sort(hosted[number, : size[number]]) for number in np.flatnonzero(size)},
        )

    def maximal_groups(
        self, prices: Prices, *, below: float, limit: int
    ) -> list[tuple[int, Integers]] | None:
        """Every set of members to which nothing can be added and whose reduced cost is less than ``below``.

        Returns
        -------
        list of (type, members) or None
            None where there are more than ``limit``.
        """
        found: list[tuple[int, Integers]] = []
        for number in range(self.num_types):
            rows = slice(self._first[number], self._first[number + 1])
            threshold = float(prices.group[number]) - below
            sets = self._maximal_sets(number, rows, prices, threshold, limit - len(found))
            if sets is None:
                return None
            found += [(number, members) for members in sets]
        return found

    def _maximal_sets(
        self, number: int, rows: slice, prices: Prices, threshold: float, limit: int
    ) -> list[Integers] | None:
        service = self._service[rows]
        if len(service) == 0:
            return []
        gain = prices.service_rps[service] - prices.power * self._energy_j[rows]
        density, bonus = gain / self._occupancy_s[rows], prices.service_hosted[service]
        most = self._capacity_s[number] * max(float(density.max()), 0.0) + np.maximum(bonus, 0.0).sum()
        if most <= threshold:
            return []
        order = np.argsort(-density, kind="stable")
        load_s = (self._demand_rps[service] * self._occupancy_s[rows])[order]
        found = np.zeros((max(limit, 0), len(service)), dtype=np.int64)
        size = np.zeros(max(limit, 0), dtype=np.int64)
        stages = int(self._stages[number])
        _, _, num = search_sets(
            self._capacity_s[number],
            self._usable_bytes[number],
            service[order],
            load_s,
            density[order],
            bonus[order],
            np.ascontiguousarray(self._weight_bytes[rows][order, :stages]),
            np.ascontiguousarray(self._working_bytes[rows][order, :stages]),
            threshold,
            MAX_NODES * 10,
            True,
            self._is_bounded[service[order]],
            found,
            size,
        )
        if num < 0:
            return None
        return [np.sort(order[found[row, : size[row]]]) for row in range(num)]

    def filled_up(self, number: int, members: Integers, prices: Prices) -> Integers:
        """``members`` with all others that still fit the memory, those that would earn most first."""
        first, last = self._first[number], self._first[number + 1]
        stages, usable = int(self._stages[number]), self._usable_bytes[number]
        weight = self._weight_bytes[first:last, :stages]
        working = self._working_bytes[first:last, :stages]
        service = self._service[first:last]
        inside = np.zeros(last - first, dtype=np.bool_)
        inside[members] = True
        room = usable - weight[members].sum(axis=0)
        peak = working[members].max(axis=0)
        gain = prices.service_rps[service] - prices.power * self._energy_j[first:last]
        able = ~inside & ~np.isin(service, service[members]) & ~self._is_bounded[service]
        order = np.flatnonzero(able)
        for place in order[np.argsort(-gain[order] / self._occupancy_s[first:last][order], kind="stable")]:
            fits = (weight[place] + np.maximum(peak, working[place]) <= room).all()
            if fits and not (inside & (service == service[place])).any():
                inside[place] = True
                room = room - weight[place]
                peak = np.maximum(peak, working[place])
        return np.flatnonzero(inside)

    def reduced_cost(self, number: int, members: Integers, prices: Prices) -> float:
        """What a group of a type hosting ``members`` costs less what it earns at best."""
        rows = self._first[number] + members
        service = self._service[rows]
        gain = prices.service_rps[service] - prices.power * self._energy_j[rows]
        earned = gain @ self.fill(number, members, prices) + prices.service_hosted[service].sum()
        return float(prices.group[number] - earned)

    def fill(self, number: int, members: Integers, prices: Prices) -> Floats:
        """Rates that earn most on a group of a type hosting ``members``, requests per second."""
        rows = self._first[number] + members
        service = self._service[rows]
        gain = prices.service_rps[service] - prices.power * self._energy_j[rows]
        occupancy_s = self._occupancy_s[rows]
        left_s = float(self._capacity_s[number])
        rates = np.zeros(len(members))
        for place in np.argsort(-gain / occupancy_s, kind="stable"):
            if gain[place] <= 0 or left_s <= 0:
                break
            rates[place] = min(self._demand_rps[service[place]], left_s / occupancy_s[place])
            left_s -= rates[place] * occupancy_s[place]
        return rates


def _joined(parts: list[NDArray[np.float64]] | list[NDArray[np.int64]]) -> NDArray[np.float64]:
    return np.concatenate(parts) if parts else np.zeros(0)


@compiled
def _price_types(
    first: Integers,
    stages: Integers,
    capacity_s: Floats,
    usable_bytes: Floats,
    service: Integers,
    demand_rps: Floats,
    occupancy_s: Floats,
    energy_j: Floats,
    weight_bytes: Floats,
    working_bytes: Floats,
    price_rps: Floats,
    price_hosted: Floats,
    price_group: Floats,
    price_power: float,
    max_nodes: int,
    value: Floats,
    bound: Floats,
    size: Integers,
    hosted: Integers,
) -> None:
    """The best set of every type: fills ``value``, ``bound``, ``size`` and ``hosted``."""
    for number in range(len(first) - 1):
        value[number] = bound[number] = price_group[number]
        begin, end = first[number], first[number + 1]
        num = end - begin
        density = np.empty(num)
        bonus = np.empty(num)
        top, bonuses = 0.0, 0.0
        for place in range(num):
            row = begin + place
            gain = price_rps[service[row]] - price_power * energy_j[row]
            density[place] = gain / occupancy_s[row] if demand_rps[service[row]] > 0.0 else 0.0
            bonus[place] = price_hosted[service[row]]
            top = max(top, density[place])
            bonuses += max(bonus[place], 0.0)
        if capacity_s[number] * top + bonuses <= price_group[number] + _TINY:
            continue
        useful = np.flatnonzero((density > 0.0) | (bonus > 0.0))
        order = useful[np.argsort(-density[useful])]
        rows = begin + order
        load_s = np.empty(len(rows))
        for place in range(len(rows)):
            load_s[place] = demand_rps[service[rows[place]]] * occupancy_s[rows[place]]
        found = np.empty((1, len(rows)), dtype=np.int64)
        found_size = np.zeros(1, dtype=np.int64)
        best, reach, num_found = search_sets(
            capacity_s[number],
            usable_bytes[number],
            service[rows],
            load_s,
            density[order],
            bonus[order],
            weight_bytes[rows, : stages[number]],
            working_bytes[rows, : stages[number]],
            price_group[number] + _TINY,
            max_nodes,
            False,
            np.zeros(len(rows), dtype=np.bool_),
            found,
            found_size,
        )
        value[number], bound[number] = best, reach
        if num_found > 0:
            size[number] = found_size[0]
            for place in range(found_size[0]):
                hosted[number, place] = order[found[0, place]]
