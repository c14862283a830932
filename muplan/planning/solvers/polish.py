"""From a relaxation to whole groups: diving, then freeing a few related groups at a time.

Diving settles the whole part of what the relaxation wants, solves the relaxation of the rest again, and
leaves the last few groups to an integer programme. Polishing is a large-neighbourhood search (Shaw, 1998;
Pisinger and Ropke, 2010): a few groups that share services, those that cost most beyond what their
requests are worth, are freed, and what they carried is planned anew with columns made for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from muplan.planning.solvers.incumbent import (
    NOTHING,
    ColumnPool,
    Incumbent,
    cost_of,
    evaluate,
    merged,
    residual,
    use_of,
)
from muplan.planning.solvers.master import Column, Relaxation, relax
from muplan.planning.solvers.pricing import Pricer
from muplan.planning.solvers.restricted import Effort, choose_groups
from muplan.planning.stated.model import PlanningModel, Use

_LEFT_TO_PROGRAMME = 24.0
"""Groups that diving leaves to the integer programme."""
_SETTLED = 0.1
"""Part of the groups left that each step of diving settles at least, .."""
_ROUNDED_UP = 0.6
""".. where they are as near to whole as this; one at least."""
_NEAR_COLUMNS = 4000
"""Columns that the next relaxation of a dive starts with."""
_COLUMNS = 250
_FREED = (3, 4, 5, 6)


def dive(
    model: PlanningModel, pricer: Pricer, pool: ColumnPool, root: Relaxation, effort: Effort
) -> Incumbent:
    """A choice of whole groups near the relaxation; `NOTHING` where that leads nowhere."""
    settled: list[Use] = []
    rest, relaxation = model, root
    ratio = 1.0
    while relaxation.feasible:
        whole = _whole_part(relaxation)
        if not whole:
            break
        for column, count in whole:
            members = pricer.filled_up(column.type, column.members, relaxation.prices)
            settled.append(use_of(rest, pool, column, members, count))
        rest = residual(model, settled)
        near = _clipped(rest, relaxation.nearest(_NEAR_COLUMNS))
        relaxation = relax(rest, pricer.for_demand(rest), columns=near, tolerance=effort.gap * ratio)
        # The gap is a part of the whole: what is left may be further from its own optimum.
        ratio = max(1.0, root.value / max(relaxation.value, 1e-9)) if root.value > 0 else 1.0
    if not relaxation.feasible:
        return NOTHING
    groups = [(use.configuration, use.count) for use in settled]
    offered = pool.nearest(relaxation, _COLUMNS, math.inf)
    if offered:
        groups += choose_groups(rest, offered, replace(effort, gap=effort.gap * ratio)).groups
    return evaluate(model, merged(groups))


def _whole_part(relaxation: Relaxation) -> list[tuple[Column, int]]:
    """Columns with a whole number of groups each; while many are left, the nearest to it above besides."""
    levels = relaxation.levels
    counts = np.floor(levels + 1e-6).astype(int)
    left = levels.sum() - counts.sum()
    short = math.ceil(_SETTLED * left) - counts.sum() if left > _LEFT_TO_PROGRAMME else 0
    if short > 0:
        part = levels - counts
        nearest = np.argsort(-part, kind="stable")[:short]
        counts[nearest[(part[nearest] >= _ROUNDED_UP) | (nearest == nearest[0])]] += 1
    return [(relaxation.columns[place], int(counts[place])) for place in np.flatnonzero(counts)]


def _clipped(model: PlanningModel, columns: Sequence[Column]) -> Iterator[Column]:
    """Columns with no more than the demand there is; those that then carry nothing are left out."""
    demand = np.array(list(model.rates_rps.values()))
    names = {name: number for number, name in enumerate(model.rates_rps)}
    for column in columns:
        group_type = model.group_types[column.type]
        rows = [
            names[group_type.form.hostings[index].service] for index in group_type.members[column.members]
        ]
        rates = np.minimum(column.rates_rps, demand[rows])
        if rates.any():
            yield replace(column, rates_rps=rates)


def polish(
    model: PlanningModel,
    pricer: Pricer,
    pool: ColumnPool,
    root: Relaxation,
    incumbent: Incumbent,
    effort: Effort,
    rng: np.random.Generator,
    tried: set[tuple[int, ...]],
) -> Incumbent:
    """One attempt at a better choice: free a few related groups, plan anew what they carried.

    Parameters
    ----------
    tried
        What was freed of this incumbent before, in vain; added to.

    Returns
    -------
    Incumbent
        The better one, or the one given.
    """
    freed = _related(model, root, incumbent, int(rng.choice(_FREED)), rng)
    if tuple(freed) in tried:
        return incumbent
    tried.add(tuple(freed))
    kept = [_without(use, number) for use, number in zip(incumbent.uses, freed, strict=True)]
    kept = [use for use in kept if use.count > 0]
    rest = residual(model, kept)
    own = pricer.for_demand(rest)
    names = {name for name, rate in rest.rates_rps.items() if rate > 1e-9}
    freed_w = incumbent.objective - sum(cost_of(model, use) for use in kept)
    near = [column for column in root.columns if _serves(model, column, names)]
    relaxation = relax(rest, own, columns=_clipped(rest, near), cutoff=freed_w)
    if not relaxation.feasible or relaxation.bound >= freed_w - 1e-6 * abs(freed_w):
        return incumbent
    again = [
        (use.configuration, number) for use, number in zip(incumbent.uses, freed, strict=True) if number > 0
    ]
    offered = {id(item): item for item in pool.nearest(relaxation, _COLUMNS, freed_w - relaxation.bound)}
    offered |= {id(configuration): configuration for configuration, _ in again}
    found = choose_groups(rest, list(offered.values()), effort, start=again)
    groups = [*((use.configuration, use.count) for use in kept), *found.groups]
    better = evaluate(model, merged(groups)) if found.groups else NOTHING
    return better if better.objective < incumbent.objective - 1e-9 else incumbent


def _serves(model: PlanningModel, column: Column, names: set[str]) -> bool:
    group_type = model.group_types[column.type]
    return any(
        group_type.form.hostings[index].service in names for index in group_type.members[column.members]
    )


def _related(
    model: PlanningModel,
    root: Relaxation,
    incumbent: Incumbent,
    number: int,
    rng: np.random.Generator,
) -> list[int]:
    """How many groups of each use to free: one drawn by what it costs beyond its worth, and its relatives."""
    price = dict(zip(model.rates_rps, root.prices.service_rps, strict=True))
    waste = []
    for use in incumbent.uses:
        worth = sum(
            price[item.service] * rate
            for item, rate in zip(use.configuration.hostings, use.rates_rps, strict=True)
        )
        waste.append(max(0.0, cost_of(model, use) - worth) / use.count + 1e-3)
    left = np.array([use.count for use in incumbent.uses])
    weight = np.array(waste) * left
    freed = np.zeros(len(left), dtype=int)
    first = int(rng.choice(len(left), p=weight / weight.sum()))
    services = _carried(incumbent.uses[first])
    freed[first] = 1
    kin = np.array([len(services & _carried(use)) for use in incumbent.uses], dtype=float)
    while freed.sum() < min(number, left.sum()):
        odds = (kin + 0.1) * np.array(waste) * (left - freed > 0)
        chosen = int(rng.choice(len(left), p=odds / odds.sum()))
        freed[chosen] += 1
    return [int(count) for count in freed]


def _carried(use: Use) -> set[str]:
    return {
        item.service
        for item, rate in zip(use.configuration.hostings, use.rates_rps, strict=True)
        if rate > 1e-9
    }


def _without(use: Use, number: int) -> Use:
    """The use with ``number`` groups fewer, each taking an equal part of the rates along."""
    left = use.count - number
    return replace(use, count=left, rates_rps=tuple(rate * left / use.count for rate in use.rates_rps))
