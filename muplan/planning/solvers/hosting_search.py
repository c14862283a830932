"""Which services a group should host at given prices: a compiled branch and bound.

For one group type and a price for every request per second served, the best group solves

    maximise  Σ_j gain_j y_j + Σ_j bonus_j x_j
    subject to  Σ_j occupancy_j y_j ≤ ρ,  0 ≤ y_j ≤ demand_j x_j,  x_j ∈ {0, 1},
                on every stage  Σ_j weight_j x_j + max_j working_j x_j ≤ memory,
                at most one partition of a service.

For a fixed set the rates fill the capacity in the order of gain over occupancy, so the search goes
through the members in that order and includes before it excludes. A node is cut off when the lesser of
two relaxations cannot beat the best: the continuous knapsack of the capacity alone, and that of the
memory alone (Martello and Toth, *Knapsack Problems*, 1990, §2.2). A small search of our own is an order
of magnitude faster here than a mixed-integer programme for each type.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from muplan.serving.compiled import allocating, compiled

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

_TINY = 1e-12


class Order(NamedTuple):
    """What the bounds need.

    Members by gain over memory, each one's memory and gain at most, and the bonuses of all from each on.
    """

    by_memory: Integers
    share: Floats
    full_gain: Floats
    bonus_after: Floats


class Path(NamedTuple):
    """The members chosen so far, and by their number what is left of the time, the value, and the memory."""

    chosen: Integers
    left_s: Floats
    value: Floats
    weight: Floats
    working: Floats


@allocating
def search_sets(
    capacity_s: float,
    usable_bytes: float,
    service: Integers,
    load_s: Floats,
    density: Floats,
    bonus: Floats,
    weight_bytes: Floats,
    working_bytes: Floats,
    threshold: float,
    max_nodes: int,
    every_maximal: bool,
    optional: Booleans,
    found: Integers,
    found_size: Integers,
) -> tuple[float, float, int]:
    """Search the sets of members of one group type, members in descending order of density.

    Parameters
    ----------
    capacity_s
        Utilisation: seconds of the bottleneck stage a second.
    usable_bytes
        Memory of each GPU.
    service
        Number of each member's service; shape (members,).
    load_s
        What the whole demand of each member would take of the bottleneck stage; shape (members,).
    density
        Gain over occupancy; shape (members,).
    bonus
        Gain from hosting at all; shape (members,).
    weight_bytes, working_bytes
        Memory on each stage's GPUs; shape (members, stages).
    threshold
        Only sets worth more are of interest.
    every_maximal
        Whether to list every set above the threshold to which nothing can be added, instead of the best.
    optional
        Members whose absence leaves a set maximal all the same (they count against some limit);
        shape (members,).
    found, found_size
        Receives the sets: shapes (sets, members) and (sets,); one row for the best.

    Returns
    -------
    tuple
        The best value (or the threshold), an upper bound on it, and the number of sets found; −1 where
        there are more than ``found`` has room for, or where the nodes did not suffice to list them.
    """
    num, stages = len(service), weight_bytes.shape[1]
    order = _memory_order(capacity_s, load_s, density, bonus, weight_bytes)
    path = Path(
        np.empty(num, dtype=np.int64),
        np.empty(num + 1),
        np.empty(num + 1),
        np.zeros((num + 1, stages)),
        np.zeros((num + 1, stages)),
    )
    return _branch(
        capacity_s, usable_bytes, service, load_s, density, bonus, weight_bytes, working_bytes, threshold,
        max_nodes, every_maximal, optional, order, path, found, found_size,
    )  # fmt: skip


@compiled
def _branch(
    capacity_s: float,
    usable_bytes: float,
    service: Integers,
    load_s: Floats,
    density: Floats,
    bonus: Floats,
    weight_bytes: Floats,
    working_bytes: Floats,
    threshold: float,
    max_nodes: int,
    every_maximal: bool,
    optional: Booleans,
    order: Order,
    path: Path,
    found: Integers,
    found_size: Integers,
) -> tuple[float, float, int]:
    """As `search_sets`, in the room of ``path``: depth first, a member taken before it is left out."""
    num, stages = len(service), weight_bytes.shape[1]
    chosen, left_s, value, weight, working = path
    left_s[0], value[0] = capacity_s, 0.0
    best, num_found, depth, place, nodes = threshold, 0, 0, 0, 0
    open_bound = threshold
    while True:
        while place < num:
            nodes += 1
            room = _room(usable_bytes, weight[depth], working[depth])
            reach = value[depth] + min(
                _capacity_bound(place, left_s[depth], load_s, density) + order.bonus_after[place],
                _memory_bound(place, room, order),
            )
            if reach <= best + _TINY:
                break
            if nodes > max_nodes:
                open_bound = max(open_bound, reach)
                break
            if _can_add(
                place,
                chosen,
                depth,
                service,
                weight[depth],
                working[depth],
                usable_bytes,
                weight_bytes,
                working_bytes,
            ):
                taken = min(load_s[place], left_s[depth]) if density[place] > 0 else 0.0
                chosen[depth] = place
                left_s[depth + 1] = left_s[depth] - taken
                value[depth + 1] = value[depth] + taken * max(density[place], 0.0) + bonus[place]
                for stage in range(stages):
                    weight[depth + 1, stage] = weight[depth, stage] + weight_bytes[place, stage]
                    working[depth + 1, stage] = max(working[depth, stage], working_bytes[place, stage])
                depth += 1
                if not every_maximal and value[depth] > best + _TINY:
                    best = value[depth]
                    num_found = 1
                    _note_set(chosen, depth, found, found_size, 0)
            place += 1
        listed = every_maximal and place == num and value[depth] > threshold + _TINY and depth > 0
        if listed and _is_maximal(
            num,
            chosen,
            depth,
            optional,
            service,
            weight[depth],
            working[depth],
            usable_bytes,
            weight_bytes,
            working_bytes,
        ):
            if num_found == len(found):
                return best, np.inf, -1
            _note_set(chosen, depth, found, found_size, num_found)
            num_found += 1
        if depth == 0:
            break
        depth -= 1
        place = chosen[depth] + 1
    if every_maximal and nodes > max_nodes:
        return best, np.inf, -1
    return best, max(best, open_bound), num_found


@compiled
def _note_set(chosen: Integers, size: int, found: Integers, found_size: Integers, row: int) -> None:
    """Write down the chosen members as a set that was found."""
    for place in range(size):
        found[row, place] = chosen[place]
    found_size[row] = size


@allocating
def _memory_order(
    capacity_s: float, load_s: Floats, density: Floats, bonus: Floats, weight_bytes: Floats
) -> Order:
    """Make what the bounds need."""
    num = len(load_s)
    share = weight_bytes.sum(axis=1)
    full_gain = np.empty(num)
    bonus_after = np.zeros(num + 1)
    for place in range(num - 1, -1, -1):
        full_gain[place] = max(density[place], 0.0) * min(load_s[place], capacity_s) + max(bonus[place], 0.0)
        bonus_after[place] = bonus_after[place + 1] + max(bonus[place], 0.0)
    by_memory = np.argsort(-full_gain / np.maximum(share, 1.0))
    return Order(by_memory, share, full_gain, bonus_after)


@compiled
def _room(usable_bytes: float, weight: Floats, working: Floats) -> float:
    """Memory that is left for weights, over all stages together."""
    room = 0.0
    for stage in range(len(weight)):
        room += usable_bytes - weight[stage] - working[stage]
    return room


@compiled
def _capacity_bound(place: int, left_s: float, load_s: Floats, density: Floats) -> float:
    """The continuous knapsack of the capacity over the members from ``place`` on."""
    gain = 0.0
    for member in range(place, len(load_s)):
        if left_s <= 0.0 or density[member] <= 0.0:
            break
        taken = min(load_s[member], left_s)
        gain += taken * density[member]
        left_s -= taken
    return gain


@compiled
def _memory_bound(place: int, room: float, order: Order) -> float:
    """The continuous knapsack of the memory over the members from ``place`` on."""
    gain = 0.0
    for member in order.by_memory:
        if member < place:
            continue
        full, share = order.full_gain[member], order.share[member]
        if full <= 0.0:
            break
        if share >= room:
            gain += full * room / max(share, 1.0)
            break
        gain += full
        room -= share
    return gain


@compiled
def _can_add(
    place: int,
    chosen: Integers,
    depth: int,
    service: Integers,
    weight: Floats,
    working: Floats,
    usable_bytes: float,
    weight_bytes: Floats,
    working_bytes: Floats,
) -> bool:
    """Whether a member's service is not there yet, and its memory is."""
    for stage in range(len(weight)):
        peak = max(working[stage], working_bytes[place, stage])
        if weight[stage] + weight_bytes[place, stage] + peak > usable_bytes:
            return False
    there = False
    for index in range(depth):
        there |= service[chosen[index]] == service[place]
    return not there


@compiled
def _is_maximal(
    num: int,
    chosen: Integers,
    depth: int,
    optional: Booleans,
    service: Integers,
    weight: Floats,
    working: Floats,
    usable_bytes: float,
    weight_bytes: Floats,
    working_bytes: Floats,
) -> bool:
    """Whether no member that is not optional can be added."""
    for place in range(num):
        inside = optional[place]
        for index in range(depth):
            inside |= chosen[index] == place
        if not inside and _can_add(
            place, chosen, depth, service, weight, working, usable_bytes, weight_bytes, working_bytes
        ):
            return False
    return True
