"""Incumbents: groups that were chosen, what they cost, and how to get from a relaxation to some."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from muplan.planning.solvers.master import Column, Relaxation
from muplan.planning.solvers.pricing import Pricer
from muplan.planning.solvers.rows import hosting_rows
from muplan.planning.stated.model import Configuration, Integers, PlanningModel, Use, served_rps
from muplan.planning.stated.rates import Groups, best_rates, serves_enough
from muplan.workload import Goal


@dataclass(frozen=True, slots=True, kw_only=True)
class Incumbent:
    """The best known choice of groups, with the rates that they carry at best.

    ``objective`` is minimised: watts above the parked fleet (less what the carried requests are worth, where
    energy per request counts); or what is carried, or the common factor, negative.
    """

    objective: float
    uses: tuple[Use, ...]

    @property
    def groups(self) -> tuple[Groups, ...]:
        """Configurations and their counts."""
        return tuple((use.configuration, use.count) for use in self.uses)


_LEAST_FLOOR_RPS = 1e-9
_FILLED_UP = 4
"""Sets that are filled up, for every one that is asked for."""

NOTHING = Incumbent(objective=math.inf, uses=())
"""No choice is known."""


def evaluate(model: PlanningModel, groups: Sequence[Groups]) -> Incumbent:
    """The rates that given groups carry at best.

    `NOTHING` where they do not serve the demand, or host a service too seldom or too often.
    """
    if not _hosts_as_often_as_due(model, groups):
        return NOTHING
    carried = best_rates(model, groups)
    if not serves_enough(model, carried):
        return NOTHING
    return Incumbent(objective=objective_of(model, carried.uses), uses=carried.uses)


def _hosts_as_often_as_due(model: PlanningModel, groups: Sequence[Groups]) -> bool:
    hosted = Counter[str]()
    for configuration, count in groups:
        hosted.update(dict.fromkeys(configuration.services, count))
    return all(row.lower <= hosted[row.service] <= row.upper for row in hosting_rows(model))


def objective_of(model: PlanningModel, uses: Sequence[Use]) -> float:
    """What a solver minimises."""
    if model.goal is Goal.RATE:
        return -common_factor(model, uses)
    return sum(cost_of(model, use) for use in uses)


def cost_of(model: PlanningModel, use: Use) -> float:
    """What a use adds to the minimised objective; 0 where a common factor counts."""
    energy_w = sum(
        rate * item.energy_j for item, rate in zip(use.configuration.hostings, use.rates_rps, strict=True)
    )
    power_w = use.count * use.configuration.standing_w + energy_w
    return model.watt_cost * power_w - model.request_worth * sum(use.rates_rps)


def common_factor(model: PlanningModel, uses: Sequence[Use]) -> float:
    """The part of its demand that every service is served at least."""
    return min(
        (served_rps(uses, name) / rate for name, rate in model.rates_rps.items() if rate > 0), default=1.0
    )


class ColumnPool:
    """Configurations made of columns, each made once: a set with all further members that fit."""

    def __init__(self, model: PlanningModel, pricer: Pricer) -> None:
        self._model, self._pricer = model, pricer
        self._made: dict[tuple[int, tuple[int, ...]], Configuration] = {}
        self._key_of: dict[int, tuple[int, tuple[int, ...]]] = {}

    def configuration(self, number: int, members: Sequence[int]) -> Configuration:
        """The configuration of a type that hosts ``members``."""
        key = number, tuple(int(member) for member in members)
        if key not in self._made:
            group_type = self._model.group_types[number]
            made = group_type.configuration([int(group_type.members[member]) for member in key[1]])
            self._made[key] = made
            self._key_of[id(made)] = key
        return self._made[key]

    def column(self, use: Use) -> Column | None:
        """One group of a use as a column; None where the configuration is none of this pool."""
        key = self._key_of.get(id(use.configuration))
        if key is None:
            return None
        rate = {
            item.service: value / use.count
            for item, value in zip(use.configuration.hostings, use.rates_rps, strict=True)
        }
        group_type = self._model.group_types[key[0]]
        names = [group_type.form.hostings[group_type.members[member]].service for member in key[1]]
        return Column(
            type=key[0],
            members=np.array(key[1], dtype=np.int64),
            rates_rps=np.array([rate[name] for name in names]),
        )

    def nearest(self, relaxation: Relaxation, most: int, gap: float) -> list[Configuration]:
        """The sets of the relaxation's columns with the least reduced costs, none above ``gap``.

        Each set is filled up with further members, dearest first: a service more costs nothing but memory.
        """
        prices = relaxation.prices
        costs = [
            -math.inf if level > 1e-9 else self._pricer.reduced_cost(column.type, column.members, prices)
            for column, level in zip(relaxation.columns, relaxation.levels, strict=True)
        ]
        best: dict[tuple[int, tuple[int, ...]], float] = {}
        # Filling up lowers the cost of a set by little, if at all: of far more than are asked for.
        for place in np.argsort(costs, kind="stable")[: _FILLED_UP * most]:
            column = relaxation.columns[place]
            members = self._pricer.filled_up(column.type, column.members, prices)
            key = column.type, tuple(members.tolist())
            used = math.isinf(costs[place])
            cost = -math.inf if used else self._pricer.reduced_cost(column.type, members, prices)
            best[key] = min(cost, best.get(key, math.inf))
        chosen = sorted((cost, key) for key, cost in best.items() if cost <= gap)[:most]
        return [self.configuration(*key) for _, key in chosen]


def residual(model: PlanningModel, settled: Iterable[Use]) -> PlanningModel:
    """What is left of a model when some groups and the rates they carry are settled."""
    rates = dict(model.rates_rps)
    taken = dict(model.taken)

    def take(name: str, amount: float) -> None:
        taken[name] = taken.get(name, 0.0) + amount

    for use in settled:
        configuration, pool = use.configuration, model.pool(use.configuration.pool)
        for hosting, rate in zip(configuration.hostings, use.rates_rps, strict=True):
            rates[hosting.service] = max(0.0, rates[hosting.service] - rate)
            take(f"min_replicas_{hosting.service}", use.count)
            take(f"anti_affinity_{hosting.service}", use.count)
        above_w = configuration.peak_w - configuration.num_gpus * pool.parked_w
        take("power_cap", use.count * above_w)
        take(f"node_power_cap_{pool.name}", use.count * above_w)
        shape = configuration.num_gpus, configuration.tensor_parallel
        for level in pool.power_levels:
            heavy = pool.is_heavy(above_w, *shape, level)
            take(f"node_power_cap_{pool.name}_{level}", use.count * heavy)
        for width in pool.slot_widths:
            take(f"gpus_available_{pool.name}_{width}", use.count * pool.slots_taken(*shape, width))
    floor_rps = model.goodput_floor_rps
    if floor_rps > 0:  # what is left of it stays positive: it also says that part may go unserved
        served = sum(model.rates_rps.values()) - sum(rates.values())
        floor_rps = max(floor_rps - served, _LEAST_FLOOR_RPS)
    return replace(model, rates_rps=rates, taken=taken, goodput_floor_rps=floor_rps)


def use_of(model: PlanningModel, pool: ColumnPool, column: Column, members: Integers, count: int) -> Use:
    """``count`` groups like a column, hosting ``members``."""
    configuration = pool.configuration(column.type, members.tolist())
    form = model.group_types[column.type].form
    rate = {
        form.hostings[model.group_types[column.type].members[member]].service: float(value) * count
        for member, value in zip(column.members, column.rates_rps, strict=True)
    }
    return Use(
        configuration=configuration,
        count=count,
        rates_rps=tuple(rate.get(item.service, 0.0) for item in configuration.hostings),
    )


def merged(groups: Iterable[Groups]) -> list[Groups]:
    """The same groups with every configuration once."""
    counts: dict[int, int] = {}
    made: dict[int, Configuration] = {}
    for configuration, count in groups:
        made[id(configuration)] = configuration
        counts[id(configuration)] = counts.get(id(configuration), 0) + count
    return [(made[key], count) for key, count in counts.items()]
