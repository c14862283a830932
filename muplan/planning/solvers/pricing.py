"""Pricing: the group of every type that is worth most at given prices.

A price for each request per second of a service, and for what a group uses (GPUs, peak power, its
place among the counted replicas), comes from the linear master programme or from anywhere else; the
cheapest group in reduced cost of every type follows from `muplan.planning.solvers.hosting_search`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass

import numpy as np

from muplan.planning.solvers.hosting_search import search_sets
from muplan.planning.solvers.type_pricing import Found, Offer, TypeTables, price_types
from muplan.planning.stated.model import Floats, Integers, PlanningModel

MAX_NODES = 20_000
"""Nodes of the search of one type; beyond, its bound is that of the relaxation."""


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
        self.num_types = len(model.group_types)
        self._is_bounded = np.array([name in model.max_replicas for name in model.rates_rps], dtype=np.bool_)
        self._demand_rps = np.array(list(model.rates_rps.values()))
        self._types = _type_tables(model)
        self.standing_w = np.array([item.form.standing_w for item in model.group_types], dtype=float)
        self.cheapest_w = self._cheapest_w()

    @property
    def gpus(self) -> Floats:
        """GPUs of a group of each type; shape (types,)."""
        return self._types.gpus

    @property
    def pool(self) -> Integers:
        """Number of each type's pool; shape (types,)."""
        return self._types.pool

    def services(self, number: int, members: Integers) -> Integers:
        """Numbers of the services that some members of a type are of."""
        return self._types.service[self._types.rows(number)[members]]

    def energy_j(self, number: int, members: Integers) -> Floats:
        """Energy of a request of some members of a type."""
        return self._types.energy_j[self._types.rows(number)[members]]

    def _cheapest_w(self) -> Floats:
        """The least that a request per second of each service costs alone on a group; shape (services,)."""
        types = self._types
        standing_w = np.repeat(self.standing_w / types.capacity_s, np.diff(types.first))
        least = np.full(len(self._demand_rps), np.inf)
        cost_w = standing_w * types.occupancy_s[types.row] + types.energy_j[types.row]
        np.minimum.at(least, types.service[types.row], cost_w)
        return least

    def for_demand(self, model: PlanningModel) -> Pricer:
        """The same tables for a model that differs in its demand alone."""
        other = copy(self)
        other._demand_rps = np.array(list(model.rates_rps.values()))
        return other

    def best_groups(self, prices: Prices, most: int | None = None) -> Priced:
        """The group of least reduced cost of every type, where that is below 0.

        Of ``most`` types, where given: those of least reduced cost. The others count as earning nothing;
        their lower bounds hold, and the least per GPU of each pool is as if all were searched.
        """
        types, num = self._types, self.num_types
        widest = max(int(np.diff(types.first).max(initial=0)), 1)
        found = Found(
            value=np.zeros(num),
            bound=np.zeros(num),
            size=np.zeros(num, dtype=np.int64),
            hosted=np.zeros((num, widest), dtype=np.int64),
        )
        most = num if most is None else min(most, num)
        price_types(types, self._offer(prices), max(1, most), MAX_NODES, found)
        return Priced(
            reduced_cost=prices.group - found.value,
            lower_bound=prices.group - found.bound,
            hosted={
                int(number): np.sort(found.hosted[number, : found.size[number]])
                for number in np.flatnonzero(found.size)
            },
        )

    def _offer(self, prices: Prices) -> Offer:
        """What every hosting earns, and every type pays."""
        types = self._types
        wanted = self._demand_rps[types.service] > 0
        return Offer(
            density=np.where(wanted, self._gain_j(slice(None), prices) / types.occupancy_s, 0.0),
            bonus=prices.service_hosted[types.service],
            load_s=self._demand_rps[types.service] * types.occupancy_s,
            group=prices.group,
        )

    def _gain_j(self, rows: Integers | slice, prices: Prices) -> Floats:
        """What each request earns on some hostings."""
        types = self._types
        return prices.service_rps[types.service[rows]] - prices.power * types.energy_j[rows]

    def maximal_groups(
        self, prices: Prices, *, below: float, limit: int
    ) -> list[tuple[int, Integers]] | None:
        """Every set of members to which nothing can be added and whose reduced cost is less than ``below``.

        Returns
        -------
        list of (type, members) or None
            None where there are more than ``limit``.
        """
        offer = self._offer(prices)
        found: list[tuple[int, Integers]] = []
        for number in range(self.num_types):
            threshold = float(prices.group[number]) - below
            sets = self._maximal_sets(number, offer, threshold, limit - len(found))
            if sets is None:
                return None
            found += [(number, members) for members in sets]
        return found

    def _maximal_sets(self, number: int, offer: Offer, threshold: float, limit: int) -> list[Integers] | None:
        types, rows = self._types, self._types.rows(number)
        if len(rows) == 0:
            return []
        density, bonus = offer.density[rows], offer.bonus[rows]
        most = types.capacity_s[number] * max(float(density.max()), 0.0) + np.maximum(bonus, 0.0).sum()
        if most <= threshold:
            return []
        order = np.argsort(-density, kind="stable")
        rows = rows[order]
        found = np.zeros((max(limit, 0), len(rows)), dtype=np.int64)
        size = np.zeros(max(limit, 0), dtype=np.int64)
        stages = int(types.stages[number])
        _, _, num = search_sets(
            types.capacity_s[number],
            types.usable_bytes[number],
            types.service[rows],
            offer.load_s[rows],
            density[order],
            bonus[order],
            np.ascontiguousarray(types.weight_bytes[rows, :stages]),
            np.ascontiguousarray(types.working_bytes[rows, :stages]),
            threshold,
            MAX_NODES * 10,
            True,
            self._is_bounded[types.service[rows]],
            found,
            size,
        )
        if num < 0:
            return None
        return [np.sort(order[found[row, : size[row]]]) for row in range(num)]

    def filled_up(self, number: int, members: Integers, prices: Prices) -> Integers:
        """``members`` with all others that still fit the memory, those that would earn most first."""
        types, rows = self._types, self._types.rows(number)
        stages = int(types.stages[number])
        weight, working = types.weight_bytes[rows, :stages], types.working_bytes[rows, :stages]
        service = types.service[rows]
        inside = np.zeros(len(rows), dtype=np.bool_)
        inside[members] = True
        room = types.usable_bytes[number] - weight[members].sum(axis=0)
        peak = working[members].max(axis=0)
        able = ~inside & ~np.isin(service, service[members]) & ~self._is_bounded[service]
        density = self._gain_j(rows, prices) / types.occupancy_s[rows]
        order = np.flatnonzero(able)
        for place in order[np.argsort(-density[order], kind="stable")]:
            fits = (weight[place] + np.maximum(peak, working[place]) <= room).all()
            if fits and not (inside & (service == service[place])).any():
                inside[place] = True
                room = room - weight[place]
                peak = np.maximum(peak, working[place])
        return np.flatnonzero(inside)

    def reduced_cost(self, number: int, members: Integers, prices: Prices) -> float:
        """What a group of a type hosting ``members`` costs less what it earns at best."""
        rows = self._types.rows(number)[members]
        earned = self._gain_j(rows, prices) @ self.fill(number, members, prices)
        return float(prices.group[number] - earned - prices.service_hosted[self._types.service[rows]].sum())

    def fill(self, number: int, members: Integers, prices: Prices) -> Floats:
        """Rates that earn most on a group of a type hosting ``members``, requests per second."""
        rows = self._types.rows(number)[members]
        gain_j, occupancy_s = self._gain_j(rows, prices), self._types.occupancy_s[rows]
        demand_rps = self._demand_rps[self._types.service[rows]]
        left_s = float(self._types.capacity_s[number])
        rates = np.zeros(len(members))
        for place in np.argsort(-gain_j / occupancy_s, kind="stable"):
            if gain_j[place] <= 0 or left_s <= 0:
                break
            rates[place] = min(demand_rps[place], left_s / occupancy_s[place])
            left_s -= rates[place] * occupancy_s[place]
        return rates


def _type_tables(model: PlanningModel) -> TypeTables:
    """The tables of a model's group types."""
    types = model.group_types
    forms = list({id(item.form): item.form for item in types}.values())
    hostings = np.array([len(each.hostings) for each in forms], dtype=np.int64)
    form_first = np.concatenate([[0], np.cumsum(hostings)]).astype(np.int64)
    numbers = {id(form): number for number, form in enumerate(forms)}
    form = np.array([numbers[id(item.form)] for item in types], dtype=np.int64)
    rows = [item.members + first for item, first in zip(types, form_first[form].tolist(), strict=True)]
    services = {name: number for number, name in enumerate(model.rates_rps)}
    service = [services[item.service] for each in forms for item in each.hostings]
    pools = {pool.name: number for number, pool in enumerate(model.pools)}
    stages = max((each.num_stages for each in forms), default=1)

    def joined(tables: list[Floats]) -> Floats:
        return np.concatenate([np.empty(0), *tables])

    def padded(tables: list[Floats]) -> Floats:
        wide = [np.pad(table, ((0, 0), (0, stages - table.shape[1]))) for table in tables]
        return np.concatenate([np.empty((0, stages)), *wide])

    return TypeTables(
        first=np.concatenate([[0], np.cumsum([len(item.members) for item in types])]).astype(np.int64),
        form_first=form_first,
        form=form,
        stages=np.array([item.form.num_stages for item in types], dtype=np.int64),
        gpus=np.array([item.form.num_gpus for item in types], dtype=float),
        pool=np.array([pools[item.form.pool] for item in types], dtype=np.int64),
        capacity_s=np.array([item.utilisation for item in types], dtype=float),
        usable_bytes=np.array([item.form.usable_bytes for item in types], dtype=float),
        row=np.concatenate([np.empty(0, dtype=np.int64), *rows]).astype(np.int64),
        service=np.array(service, dtype=np.int64),
        occupancy_s=joined([each.occupancy_s for each in forms]),
        energy_j=joined([each.energy_j for each in forms]),
        weight_bytes=padded([each.weight_bytes for each in forms]),
        working_bytes=padded([each.working_bytes for each in forms]),
    )
