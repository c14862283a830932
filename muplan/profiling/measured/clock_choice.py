"""Which clocks are measured: four that say most of the others, and more while those foretell badly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from muplan.profile import Profile
from muplan.profiling.measured.clock_curve import along_clocks

Floats = NDArray[np.float64]

NUM_FIRST = 4
"""Measured in any case: two ends and two between them foretell time and power of the rest within about two
percent on most hardware; clocks that were left out then judge whether it is so here."""
MOST_CLOCKS = 8
MOST_RESIDUAL = 0.03
"""How far time and power of a whole pass may lie from what the measured clocks foretell of another."""


def first_clocks(modelled: Profile, allowed: Sequence[int]) -> tuple[int, ...]:
    """Return the clocks to begin with: of those allowed the ends, and the two that leave least unsaid.

    By the device's physics: through the modelled values at every choice of two, the curves are drawn that a
    measurement would be drawn through, and compared with the modelled values at all clocks.
    """
    clocks = [clock for clock in modelled.clocks_mhz if clock in allowed]
    if len(clocks) <= NUM_FIRST:
        return tuple(clocks)
    kept = [modelled.clocks_mhz.index(clock) for clock in clocks]
    values = _values(modelled)[kept]
    inner = range(1, len(clocks) - 1)
    choices = [(0, *pair, len(clocks) - 1) for pair in combinations(inner, NUM_FIRST - 2)]
    best = min(choices, key=lambda choice: _unsaid(clocks, values, choice))
    return tuple(clocks[place] for place in best)


def next_clock(allowed: Sequence[int], taken: Sequence[int], known: Sequence[int]) -> int | None:
    """Return a clock to judge the curves by: in the middle, in logarithms, of a gap between those taken.

    Gaps that hold a clock already known of (judged and found well foretold, or not reached) are closed; the
    widest of the others comes first. None where all gaps are closed.
    """
    gaps = []
    for low, high in pairwise(sorted(taken)):
        inside = [clock for clock in allowed if low < clock < high]
        if inside and not set(inside).intersection(known):
            middle = math.sqrt(low * high)
            gaps.append((high / low, min(inside, key=lambda clock: abs(math.log(clock / middle)))))
    return max(gaps)[1] if gaps else None


def _values(modelled: Profile) -> Floats:
    """Latency and power of every point of the model; shape (clocks, 2 × points)."""
    tables = [
        np.array(table)
        for kind in modelled.cluster_types
        for phase in kind.tables
        for table in (phase.latency_s[0], phase.power_w[0])
    ]
    return np.concatenate([table.reshape(len(modelled.clocks_mhz), -1) for table in tables], axis=1)


def _unsaid(clocks: Sequence[int], values: Floats, choice: Sequence[int]) -> float:
    drawn = along_clocks(clocks, choice, values[list(choice)], values)
    return float(np.square(np.log(drawn / values)).mean())
