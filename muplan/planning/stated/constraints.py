"""The constraints of the planning model, one function each, and its objectives.

A constraint has the same name here, in ``docs/mathematics.md``, in the LP file and in a violation that
``muplan verify`` reports. They are written over given configurations; constraints on one group alone
(memory_fits, slo_met, clock_supported, every_cluster_once) hold for each of these by construction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from muplan.planning.stated.model import LEAST_ADMITTED, Configuration, PlanningModel, PoolSupply
from muplan.workload import Goal

if TYPE_CHECKING:
    from pulp import LpAffineExpression, LpProblem, LpVariable


@dataclass(frozen=True, kw_only=True)
class Program:
    """The mixed-integer programme of a model over given configurations.

    ``counts[k]`` groups of configuration k; ``rates_rps[k][j]`` carried for its hosting j; ``factor``,
    common to all rates and at most 1, where that is what is maximised.
    """

    problem: LpProblem
    model: PlanningModel
    configurations: tuple[Configuration, ...]
    counts: tuple[LpVariable, ...]
    rates_rps: tuple[tuple[LpVariable, ...], ...]
    factor: LpVariable | None

    @cached_property
    def _hosted(self) -> dict[str, list[tuple[LpVariable, LpVariable]]]:
        hosted: dict[str, list[tuple[LpVariable, LpVariable]]] = {}
        for configuration, count, row in zip(self.configurations, self.counts, self.rates_rps, strict=True):
            for hosting, rate in zip(configuration.hostings, row, strict=True):
                hosted.setdefault(hosting.service, []).append((count, rate))
        return hosted

    def hosting(self, service: str) -> list[tuple[LpVariable, LpVariable]]:
        """Count and rate wherever a service is hosted."""
        return self._hosted.get(service, [])

    def groups(self, pool: PoolSupply) -> list[tuple[Configuration, LpVariable]]:
        """Configurations on a pool with their counts."""
        pairs = zip(self.configurations, self.counts, strict=True)
        return [(configuration, count) for configuration, count in pairs if configuration.pool == pool.name]


def demand_served(program: Program) -> None:
    """Σ_k y_{k,i} = λ_i for every service.

    Where part may go unserved ≤ instead, and at least a hundredth of it: no service is shut out. Where a
    common factor α is maximised, Σ_k y_{k,i} = α λ_i.
    """
    model, problem = program.model, program.problem
    for number, (service, rate) in enumerate(model.rates_rps.items()):
        carried = _sum(variable for _, variable in program.hosting(service))
        name = f"demand_served_{number}_{service}"
        if program.factor is not None:
            problem.addConstraint(carried == rate * program.factor, name)
        elif model.admits_part:
            problem.addConstraint(carried <= rate, name)
            problem.addConstraint(carried >= LEAST_ADMITTED * rate, f"{name}_least")
        else:
            problem.addConstraint(carried == rate, name)


def goodput_kept(program: Program) -> None:
    """Σ_{k,i} y_{k,i} ≥ what was found possible, where power is minimised at the most goodput."""
    if program.model.goodput_floor_rps > 0:
        program.problem.addConstraint(
            carried_rate(program) >= program.model.goodput_floor_rps, "goodput_kept"
        )


def capacity(program: Program) -> None:
    """Σ_i y_{k,i} · occupancy_{k,i} / ρ_k ≤ n_k for every configuration."""
    rows = zip(program.configurations, program.counts, program.rates_rps, strict=True)
    for index, (configuration, count, row) in enumerate(rows):
        needed = _sum(
            configuration.load_s(hosting) * variable
            for hosting, variable in zip(configuration.hostings, row, strict=True)
        )
        program.problem.addConstraint(needed <= count, f"capacity_{index}")


def rate_within_demand(program: Program) -> None:
    """y_{k,i} ≤ λ_i n_k wherever a group could carry more than the whole demand of a service.

    It follows from the others for whole numbers of groups, and tightens the relaxation.
    """
    rows = zip(program.configurations, program.counts, program.rates_rps, strict=True)
    for index, (configuration, count, row) in enumerate(rows):
        for hosting, variable in zip(configuration.hostings, row, strict=True):
            rate = program.model.rates_rps[hosting.service]
            if rate * configuration.load_s(hosting) < 1.0:
                name = f"rate_within_demand_{index}_{hosting.service}"
                program.problem.addConstraint(variable <= rate * count, name)


def gpus_available(program: Program) -> None:
    """Σ_k n_k slots_k(w) ≤ the slots of w GPUs there are, for every pool and width w in use.

    ``slots_k(w)`` counts those that the parts of a group spoil which are w or more GPUs wide; so all
    groups fit the nodes (`muplan.planning.stated.packing`).
    """
    for pool in program.model.pools:
        for width in slot_widths(program.model, pool):
            used = _sum(
                pool.slots_taken(configuration.num_gpus, configuration.tensor_parallel, width) * count
                for configuration, count in program.groups(pool)
            )
            name = f"gpus_available_{pool.name}_{width}"
            program.problem.addConstraint(
                used <= pool.num_slots(width) - program.model.taken.get(name, 0.0), name
            )


def slot_widths(model: PlanningModel, pool: PoolSupply) -> tuple[int, ...]:
    """1, and every number of GPUs of one node that a part of some candidate on the pool needs; ascending."""
    shapes = {
        (item.form.num_gpus, item.form.tensor_parallel)
        for item in model.group_types
        if item.form.pool == pool.name
    }
    parts = {part for shape in shapes for part in pool.parts(*shape)}
    return tuple(sorted({1} | {pool.slot_width(part) for part in parts}))


def power_cap(program: Program) -> None:
    """Σ_k n_k · (peak_k − parked_k) + parked fleet ≤ the fleet's cap, where it has one."""
    model = program.model
    if math.isfinite(model.power_cap_w):
        peak = _sum(_above_parked(program, pool) for pool in model.pools)
        spare_w = model.power_cap_w - model.parked_w - model.taken.get("power_cap", 0.0)
        program.problem.addConstraint(peak <= spare_w, "power_cap")


def node_power_cap(program: Program) -> None:
    """Σ_k n_k · (peak_k − parked_k) + parked pool ≤ the caps of all its nodes together.

    And for every m, at most m groups a node of those of which no node's cap holds m + 1. Necessary only; that
    every node keeps its own cap is left to the packing of groups on nodes.
    """
    for pool in program.model.pools:
        if math.isfinite(pool.node_power_cap_w):
            name = f"node_power_cap_{pool.name}"
            spare_w = pool.spare_node_power_w - program.model.taken.get(name, 0.0)
            program.problem.addConstraint(_above_parked(program, pool) <= spare_w, name)
        for level in pool.power_levels:
            name = f"node_power_cap_{pool.name}_{level}"
            heavy = [
                count
                for item, count in program.groups(pool)
                if pool.is_heavy(_above_w(item, pool), item.num_gpus, item.tensor_parallel, level)
            ]
            most = level * len(pool.free_per_node) - program.model.taken.get(name, 0.0)
            if heavy:
                program.problem.addConstraint(_sum(heavy) <= most, name)


def min_replicas(program: Program) -> None:
    """Σ_{k hosts i} n_k ≥ the least number of replicas of service i, where that is above 1."""
    for service, number in program.model.min_replicas.items():
        if number > 1:
            hosted = _sum(count for count, _ in program.hosting(service))
            name = f"min_replicas_{service}"
            program.problem.addConstraint(hosted >= number - program.model.taken.get(name, 0.0), name)


def anti_affinity(program: Program) -> None:
    """Σ_{k hosts i} n_k ≤ the nodes that service i may use, where its replicas must not share one."""
    for service, number in program.model.max_replicas.items():
        hosted = _sum(count for count, _ in program.hosting(service))
        name = f"anti_affinity_{service}"
        program.problem.addConstraint(hosted <= number - program.model.taken.get(name, 0.0), name)


CONSTRAINTS: tuple[Callable[[Program], None], ...] = (
    demand_served,
    goodput_kept,
    capacity,
    rate_within_demand,
    gpus_available,
    power_cap,
    node_power_cap,
    min_replicas,
    anti_affinity,
)
"""Every constraint of the model, in the order in which they are written."""


def fleet_power(program: Program) -> LpAffineExpression:
    """Expected power of the fleet above all GPUs parked, watts."""
    standing = _sum(
        configuration.standing_w * count
        for configuration, count in zip(program.configurations, program.counts, strict=True)
    )
    return standing + _sum(
        hosting.energy_j * variable
        for configuration, row in zip(program.configurations, program.rates_rps, strict=True)
        for hosting, variable in zip(configuration.hostings, row, strict=True)
    )


def carried_rate(program: Program) -> LpAffineExpression:
    """Requests per second that are carried."""
    return _sum(variable for row in program.rates_rps for variable in row)


def make_program(model: PlanningModel, configurations: Sequence[Configuration]) -> Program:
    """The mixed-integer programme of a model over given configurations, with its own objective."""
    from pulp import LpMaximize, LpMinimize, LpProblem

    problem = LpProblem("muplan", LpMinimize if model.watt_cost > 0 else LpMaximize)
    counts, rates = [], []
    for index, configuration in enumerate(configurations):
        most = model.pool(configuration.pool).num_free // configuration.num_gpus
        counts.append(problem.add_variable(f"n_{index}", 0, most, "Integer"))
        rates.append(
            tuple(problem.add_variable(f"y_{index}_{item.service}", 0) for item in configuration.hostings)
        )
    program = Program(
        problem=problem,
        model=model,
        configurations=tuple(configurations),
        counts=tuple(counts),
        rates_rps=tuple(rates),
        factor=problem.add_variable("factor", 0, 1) if model.goal is Goal.RATE else None,
    )
    problem.setObjective(_objective(program))
    for constraint in CONSTRAINTS:
        constraint(program)
    return program


def _objective(program: Program) -> LpAffineExpression:
    """Power; carried rate; the common factor; or power less what the carried requests are worth."""
    if program.factor is not None:
        return _sum([program.factor])
    match program.model.goal:
        case Goal.POWER:
            return fleet_power(program)
        case Goal.ENERGY_PER_REQUEST:
            return fleet_power(program) - program.model.request_worth_j * carried_rate(program)
        case _:
            return carried_rate(program)


def _above_parked(program: Program, pool: PoolSupply) -> LpAffineExpression:
    """Peak power of a pool's groups above that of their GPUs parked."""
    return _sum(_above_w(configuration, pool) * count for configuration, count in program.groups(pool))


def _above_w(configuration: Configuration, pool: PoolSupply) -> float:
    return configuration.peak_w - configuration.num_gpus * pool.parked_w


def _sum(terms: Iterable[object]) -> LpAffineExpression:
    from pulp import lpSum

    return lpSum(list(terms))
