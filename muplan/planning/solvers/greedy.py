"""The greedy solver: group by group at the best marginal benefit, then descent by exchange.

In the manner of AlpaServe's placement (Li et al., OSDI'23, §4.2) it starts from nothing and always adds
the group that serves most for what it costs. Cost counts GPUs and peak power at prices that rise until
the fleet and its cap suffice. Then single groups are dropped or exchanged for others (a lower clock
above all) while that lowers the power.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from muplan.plan import Status
from muplan.planning.solvers.solver import no_solution
from muplan.planning.stated.model import PlanningModel, Solution, power_of
from muplan.planning.stated.rates import Carried, best_rates, serves_enough
from muplan.workload import Goal

Floats = NDArray[np.float64]
Counts = dict[int, int]
Value = tuple[float, float, float]

_PRICES = (0.0, *(0.1 * 2.0**step for step in range(14)))
"""Prices of a GPU, as multiples of the mean standing power of one; infinitely dear comes last."""

_MAX_EVALUATIONS = 400


def solve_greedy(
    model: PlanningModel, *, time_limit_s: float, seed: int, max_evaluations: int = _MAX_EVALUATIONS
) -> Solution:
    """Solve a model greedily; the bound is that of its linear relaxation.

    Parameters
    ----------
    time_limit_s
        Not needed: the number of steps is bounded.
    seed
        Recorded; the method draws no random numbers.
    max_evaluations
        Exchanges to try in the descent.
    """
    del time_limit_s
    if not model.configurations:
        return no_solution("greedy", Status.INFEASIBLE, seed)
    best: tuple[Value, Counts] | None = None
    for price in _PRICES:
        counts = _construct(model, price)
        if _fits(model, counts):
            value = _value(model, best_rates(model, counts))
            if best is None or value < best[0]:
                best = (value, counts)
    if best is None or best[0][0] > 0:
        return no_solution("greedy", Status.TIME_LIMIT, seed)
    counts = _descend(model, *best, max_evaluations)
    uses = best_rates(model, counts).uses
    power_w = power_of(model, uses)
    goodput = sum(sum(use.rates_rps) for use in uses)
    objective = power_w if model.goal is Goal.POWER else goodput
    return Solution(
        solver="greedy",
        status=Status.FEASIBLE,
        objective=objective,
        bound=relaxation_bound(model),
        power_w=power_w,
        uses=uses,
        seed=seed,
    )


def relaxation_bound(model: PlanningModel) -> float:
    """The objective of the linear relaxation: no solution is better. NaN where that is infeasible."""
    from pulp import HiGHS, LpStatusOptimal

    from muplan.planning.stated.constraints import make_program

    problem, _ = make_program(model)
    problem.solve(HiGHS(msg=False, mip=False, threads=1))
    if problem.status != LpStatusOptimal:
        return math.nan
    value = float(problem.objective.value() or 0.0)
    return value + (model.parked_w if model.goal is Goal.POWER else 0.0)


def _value(model: PlanningModel, carried: Carried) -> Value:
    """What is minimised: whether too little is served, what goes unserved, power."""
    enough = serves_enough(model, carried)
    unserved = 0.0 if enough and model.goal is Goal.POWER else carried.unserved_rps
    return 0.0 if enough else 1.0, round(unserved, 9), power_of(model, carried.uses)


def _construct(model: PlanningModel, price: float) -> Counts:
    """Add groups, each the cheapest for what it serves, until all is served or no group fits."""
    services = list(model.rates_rps)
    load, energy = _matrices(model, services)
    standing = np.array([item.standing_w for item in model.configurations])
    gpus = np.array([item.num_gpus for item in model.configurations], dtype=float)
    peak = np.array([item.peak_w for item in model.configurations])
    unit_w = float((standing / gpus).mean())
    dear = standing + price * unit_w * gpus
    if math.isfinite(model.power_cap_w):
        dear = dear + price * unit_w * peak * (gpus.sum() / peak.sum())
    worth = np.where(np.isfinite(load), energy + dear[:, None] * load, np.inf).min(axis=0)
    left = np.array(list(model.rates_rps.values()))
    counts: Counts = {}
    while (left > 1e-12).any():
        served = _fill(load, energy, worth, left)
        value = served @ np.where(np.isfinite(worth), worth, 0.0)
        cost = dear + (served * np.where(np.isfinite(energy), energy, 0.0)).sum(axis=1)
        ratio = np.where(value > 0, cost / np.maximum(value, 1e-300), np.inf)
        for index in np.lexsort((-value, ratio)):
            trial = {**counts, int(index): counts.get(int(index), 0) + 1}
            if not np.isfinite(ratio[index]):
                return counts
            if _fits(model, trial):
                break
        else:
            return counts
        counts = trial
        left = np.maximum(left - served[index], 0.0)
        left[left < 1e-12] = 0.0
    return counts


def _matrices(model: PlanningModel, services: list[str]) -> tuple[Floats, Floats]:
    """Groups per rate, and energy, of every configuration and service; infinite where not hosted."""
    column = {name: index for index, name in enumerate(services)}
    load = np.full((len(model.configurations), len(services)), np.inf)
    energy = np.full(load.shape, np.inf)
    for row, configuration in enumerate(model.configurations):
        for hosting in configuration.hostings:
            load[row, column[hosting.service]] = configuration.load_s(hosting)
            energy[row, column[hosting.service]] = hosting.energy_j
    return load, energy


def _fill(load: Floats, energy: Floats, worth: Floats, left: Floats) -> Floats:
    """Rates that one more group of every configuration takes: the dearest demand for its capacity first."""
    hosted = np.isfinite(load)
    gain = np.where(
        hosted, (worth[None, :] - np.where(hosted, energy, 0.0)) / np.where(hosted, load, 1.0), -np.inf
    )
    order = np.argsort(-gain, axis=1, kind="stable")
    room = np.ones(len(load))
    served = np.zeros(load.shape)
    rows = np.arange(len(load))
    for rank in range(load.shape[1]):
        column = order[:, rank]
        need = load[rows, column]
        able = np.isfinite(need)
        take = np.where(able, np.minimum(left[column], room / np.where(able, need, 1.0)), 0.0)
        served[rows, column] = take
        room = np.maximum(room - take * np.where(able, need, 0.0), 0.0)
    return served


def _fits(model: PlanningModel, counts: Mapping[int, int]) -> bool:
    """Whether the groups can be placed on the pools under the fleet's cap."""
    peak = model.parked_w
    used: dict[tuple[str, int], int] = {}
    for index, count in counts.items():
        configuration = model.configurations[index]
        pool = model.pool(configuration.pool)
        peak += count * (configuration.peak_w - configuration.num_gpus * pool.parked_w)
        width = pool.slot_width(configuration.num_gpus)
        used[pool.name, width] = used.get((pool.name, width), 0) + count * configuration.num_gpus
    if peak > model.power_cap_w * (1 + 1e-9):
        return False
    for pool in model.pools:
        widths = {1} | {width for name, width in used if name == pool.name}
        for width in widths:
            taken = sum(gpus for (name, other), gpus in used.items() if name == pool.name and other >= width)
            if taken // width > pool.num_slots(width):
                return False
    return True


def _descend(model: PlanningModel, value: Value, counts: Counts, max_evaluations: int) -> Counts:
    """Drop or exchange single groups while that improves the solution; first improvement, bounded."""
    by_standing = sorted(
        range(len(model.configurations)),
        key=lambda index: (model.configurations[index].standing_w, model.configurations[index].clocks_mhz),
    )
    evaluations = 0
    improved = True
    while improved and evaluations < max_evaluations:
        improved = False
        for index in sorted(counts):
            for trial in _neighbours(model, counts, index, by_standing):
                if not _fits(model, trial):
                    continue
                evaluations += 1
                carried = best_rates(model, trial)
                found = _value(model, carried)
                if found < (value[0], value[1], value[2] * (1 - 1e-9)):
                    value, counts, improved = found, trial, True
                    break
                if evaluations >= max_evaluations:
                    return counts
            if improved:
                break
    return counts


def _neighbours(model: PlanningModel, counts: Counts, index: int, others: list[int]) -> list[Counts]:
    """One group of ``index`` dropped, or exchanged for another that hosts a service of it."""
    fewer = {key: count - (key == index) for key, count in counts.items() if count - (key == index) > 0}
    hosted = set(model.configurations[index].services)
    able = (item for item in others if item != index and hosted & set(model.configurations[item].services))
    return [fewer, *({**fewer, other: fewer.get(other, 0) + 1} for other in able)]
