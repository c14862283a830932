"""The constraints of the planning model, one function each, and its objectives.

A constraint has the same name here, in ``docs/mathematics.md``, in the LP file and in a violation that
``muplan verify`` reports. Constraints on one group alone (memory_fits, slo_met, clock_supported,
every_cluster_once) hold for every candidate by construction: see `muplan.planning.stated.candidates`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muplan.planning.stated.model import LEAST_ADMITTED, PlanningModel, PoolSupply
from muplan.workload import Goal

if TYPE_CHECKING:
    from pulp import LpAffineExpression, LpProblem, LpVariable


@dataclass(frozen=True, slots=True, kw_only=True)
class Variables:
    """Decisions: ``counts[k]`` groups of configuration k; ``rates_rps[k][j]`` carried for its hosting j."""

    counts: tuple[LpVariable, ...]
    rates_rps: tuple[tuple[LpVariable, ...], ...]


def make_variables(problem: LpProblem, model: PlanningModel) -> Variables:
    """The decisions of a model: integers bounded by the pool, and rates from 0 on."""
    counts = []
    rates = []
    for index, configuration in enumerate(model.configurations):
        most = model.pool(configuration.pool).num_gpus // configuration.num_gpus
        counts.append(problem.add_variable(f"n_{index}", 0, most, "Integer"))
        rates.append(
            tuple(problem.add_variable(f"y_{index}_{item.service}", 0) for item in configuration.hostings)
        )
    return Variables(counts=tuple(counts), rates_rps=tuple(rates))


def demand_served(problem: LpProblem, model: PlanningModel, variables: Variables) -> None:
    """Σ_k y_{k,i} = λ_i for every service.

    Where goodput is maximised ≤ instead, and at least a hundredth of it: no service is shut out.
    """
    for number, (service, rate) in enumerate(model.rates_rps.items()):
        carried = _sum(
            variable
            for configuration, row in zip(model.configurations, variables.rates_rps, strict=True)
            for hosting, variable in zip(configuration.hostings, row, strict=True)
            if hosting.service == service
        )
        row_name = f"demand_served_{number}_{service}"
        if model.goal is Goal.POWER:
            problem.addConstraint(carried == rate, row_name)
        else:
            problem.addConstraint(carried <= rate, row_name)
            problem.addConstraint(carried >= LEAST_ADMITTED * rate, f"{row_name}_least")


def capacity(problem: LpProblem, model: PlanningModel, variables: Variables) -> None:
    """Σ_i y_{k,i} · occupancy_{k,i} / ρ_k ≤ n_k for every configuration."""
    for index, (configuration, row) in enumerate(zip(model.configurations, variables.rates_rps, strict=True)):
        needed = _sum(
            configuration.load_s(hosting) * variable
            for hosting, variable in zip(configuration.hostings, row, strict=True)
        )
        problem.addConstraint(needed <= variables.counts[index], f"capacity_{index}")


def gpus_available(problem: LpProblem, model: PlanningModel, variables: Variables) -> None:
    """Groups fit the nodes of every pool: for each width w, those that need w or more GPUs of one node.

    Widths divide each other, so the sets can be packed if, for every width w in use, the groups at
    least that wide take no more sets of w GPUs than the nodes hold.
    """
    for pool in model.pools:
        members = [
            (configuration, count)
            for configuration, count in zip(model.configurations, variables.counts, strict=True)
            if configuration.pool == pool.name
        ]
        for width in slot_widths(model, pool):
            used = _sum(
                configuration.num_gpus // width * count
                for configuration, count in members
                if pool.slot_width(configuration.num_gpus) >= width
            )
            problem.addConstraint(used <= pool.num_slots(width), f"gpus_available_{pool.name}_{width}")


def slot_widths(model: PlanningModel, pool: PoolSupply) -> tuple[int, ...]:
    """1, and every number of GPUs of one node that some candidate on the pool needs; ascending."""
    members = (item for item in model.configurations if item.pool == pool.name)
    return tuple(sorted({1} | {pool.slot_width(item.num_gpus) for item in members}))


def power_cap(problem: LpProblem, model: PlanningModel, variables: Variables) -> None:
    """Σ_k n_k · (peak_k − parked_k) + parked fleet ≤ the fleet's cap, where it has one."""
    if model.power_cap_w == float("inf"):
        return
    peak = _sum(
        (configuration.peak_w - configuration.num_gpus * model.pool(configuration.pool).parked_w) * count
        for configuration, count in zip(model.configurations, variables.counts, strict=True)
    )
    problem.addConstraint(peak <= model.power_cap_w - model.parked_w, "power_cap")


CONSTRAINTS: tuple[Callable[[LpProblem, PlanningModel, Variables], None], ...] = (
    demand_served,
    capacity,
    gpus_available,
    power_cap,
)
"""Every constraint of the model, in the order in which they are written."""


def fleet_power(model: PlanningModel, variables: Variables) -> LpAffineExpression:
    """Expected power of the fleet above all GPUs parked, watts."""
    return _sum(
        configuration.standing_w * count
        for configuration, count in zip(model.configurations, variables.counts, strict=True)
    ) + _sum(
        hosting.energy_j * variable
        for configuration, row in zip(model.configurations, variables.rates_rps, strict=True)
        for hosting, variable in zip(configuration.hostings, row, strict=True)
    )


def carried_rate(variables: Variables) -> LpAffineExpression:
    """Requests per second that are carried."""
    return _sum(variable for row in variables.rates_rps for variable in row)


def make_program(model: PlanningModel) -> tuple[LpProblem, Variables]:
    """The mixed-integer programme of a model, with its own objective."""
    from pulp import LpMaximize, LpMinimize, LpProblem

    goodput = model.goal is Goal.GOODPUT
    problem = LpProblem("muplan", LpMaximize if goodput else LpMinimize)
    variables = make_variables(problem, model)
    problem.setObjective(carried_rate(variables) if goodput else fleet_power(model, variables))
    for constraint in CONSTRAINTS:
        constraint(problem, model, variables)
    return problem, variables


def _sum(terms: object) -> LpAffineExpression:
    from pulp import lpSum

    return lpSum(list(terms))  # type: ignore[call-overload]
