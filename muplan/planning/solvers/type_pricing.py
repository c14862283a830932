"""The best set of services for every group type at given prices: compiled.

What a type can earn at most is cheap to tell: its capacity at the best density of its form, or of its
members. Types are searched in the order of that bound, and no further than they may matter to whoever asks:
as one of the ``most`` groups of least reduced cost, or as the least reduced cost per GPU of a pool, on which
a Lagrangian bound stands.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np

from muplan.planning.solvers.hosting_search import Floats, Integers, search_sets
from muplan.serving.compiled import allocating, compiled

_TINY = 1e-9


class TypeTables(NamedTuple):
    """Group types, their members one type after another, and the hostings that members are.

    Types of one form share its hostings; so the members of a type are rows of the form's tables.

    Parameters
    ----------
    first, form_first
        Where the members of each type and the hostings of each form begin; shapes (types + 1,), (forms + 1,).
    form
        Of each type; shape (types,).
    stages, gpus, pool, capacity_s, usable_bytes
        Of each type: stages, GPUs, number of the pool, utilisation and memory of a GPU; shape (types,).
    row
        Each member's hosting; shape (members,).
    service, occupancy_s, energy_j
        Of each hosting: number of the service, seconds of the bottleneck stage and joules a request; shape
        (hostings,).
    weight_bytes, working_bytes
        Of each hosting on the GPUs of each stage; shape (hostings, stages).
    """

    first: Integers
    form_first: Integers
    form: Integers
    stages: Integers
    gpus: Floats
    pool: Integers
    capacity_s: Floats
    usable_bytes: Floats
    row: Integers
    service: Integers
    occupancy_s: Floats
    energy_j: Floats
    weight_bytes: Floats
    working_bytes: Floats

    def rows(self, number: int) -> Integers:
        """Hostings of a type's members."""
        return self.row[self.first[number] : self.first[number + 1]]


class Offer(NamedTuple):
    """What is earned and paid at given prices.

    Parameters
    ----------
    density
        Earned by each hosting for each second of the bottleneck stage; 0 without demand; shape (hostings,).
    bonus
        Earned by each hosting in a group, whatever it carries; shape (hostings,).
    load_s
        Seconds of the bottleneck stage a second that the whole demand takes; shape (hostings,).
    group
        Paid by a group of each type; shape (types,).
    """

    density: Floats
    bonus: Floats
    load_s: Floats
    group: Floats


class Found(NamedTuple):
    """The best set of every type.

    ``value`` is what it earns and ``bound`` the most that any can; both the price of the group where none
    that matters earns it, ``size`` then 0; ``hosted`` are its members; shapes (types,) and (types, members).
    """

    value: Floats
    bound: Floats
    size: Integers
    hosted: Integers


@allocating
def price_types(types: TypeTables, offer: Offer, most: int, max_nodes: int, found: Found) -> None:
    """Find the best set of every type that matters; all of them where ``most`` is the number of types."""
    num_types, num_forms = len(types.first) - 1, len(types.form_first) - 1
    top, bonuses = np.zeros(num_forms), np.zeros(num_forms)
    for form in range(num_forms):
        for row in range(types.form_first[form], types.form_first[form + 1]):
            top[form] = max(top[form], offer.density[row])
            bonuses[form] += max(offer.bonus[row], 0.0)
    reach = offer.group - (types.capacity_s * top[types.form] + bonuses[types.form])
    found.value[:], found.bound[:] = offer.group, offer.group
    nearest = [0.0 for _ in range(most)]  # the least reduced costs found, negated: a heap, the last on top
    least_per_gpu = np.zeros(int(types.pool.max()) + 1 if num_types else 0)
    for number in np.argsort(reach):
        if reach[number] >= -_TINY:
            break
        gpus, pool = types.gpus[number], types.pool[number]
        cutoff = max(-nearest[0], least_per_gpu[pool] * gpus)
        if reach[number] < cutoff:
            reach[number] = offer.group[number] - _most_earned(types, offer, number)
        if reach[number] >= min(cutoff, -_TINY):
            found.bound[number] = max(offer.group[number] - reach[number], offer.group[number])
            continue
        _search(types, offer, number, offer.group[number] - cutoff + _TINY, max_nodes, found)
        cost = offer.group[number] - found.value[number]
        if found.size[number] > 0:
            least_per_gpu[pool] = min(least_per_gpu[pool], cost / gpus)
            if -cost > nearest[0]:
                heapq.heapreplace(nearest, -cost)


@compiled
def _most_earned(types: TypeTables, offer: Offer, number: int) -> float:
    """A bound on what any set of a type earns: all capacity at the best density, and every bonus."""
    top, bonuses = 0.0, 0.0
    for member in range(types.first[number], types.first[number + 1]):
        row = types.row[member]
        top = max(top, offer.density[row])
        bonuses += max(offer.bonus[row], 0.0)
    return float(types.capacity_s[number] * top + bonuses)


@allocating
def _search(
    types: TypeTables, offer: Offer, number: int, threshold: float, max_nodes: int, found: Found
) -> None:
    """The best set of a type among those that earn more than ``threshold``."""
    all_rows = types.row[types.first[number] : types.first[number + 1]]
    density = offer.density[all_rows]
    useful = np.flatnonzero((density > 0.0) | (offer.bonus[all_rows] > 0.0))
    order = useful[np.argsort(-density[useful])]
    rows = all_rows[order]
    members = np.empty((1, len(rows)), dtype=np.int64)
    size = np.zeros(1, dtype=np.int64)
    best, bound, num_found = search_sets(
        types.capacity_s[number],
        types.usable_bytes[number],
        types.service[rows],
        offer.load_s[rows],
        density[order],
        offer.bonus[rows],
        types.weight_bytes[rows, : types.stages[number]],
        types.working_bytes[rows, : types.stages[number]],
        threshold,
        max_nodes,
        False,
        np.zeros(len(rows), dtype=np.bool_),
        members,
        size,
    )
    found.bound[number] = bound
    if num_found > 0:
        found.value[number], found.size[number] = best, size[0]
        for place in range(size[0]):
            found.hosted[number, place] = order[members[0, place]]
