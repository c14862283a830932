"""Pipelines whose stages have clocks of their own: a stage that is no bottleneck can run slower."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.planning.estimates.clusters import Floats
from muplan.serving.compiled import allocating

Integers = NDArray[np.int64]

_EQUAL = 1.0 + 1e-9
"""Times this close are equal: sums of the same terms in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocking:
    """Of each stage of a contiguous partition, the index after its last cluster, and that of its clock."""

    stops: tuple[int, ...]
    clocks: tuple[int, ...]


def thriftiest(
    latency_s: Floats, energy_j: Floats, loaded_w: Floats, *, limit_s: float, num_stages: int
) -> Clocking:
    """The cut and clocks that take the least power while every stage keeps up a pace.

    A dynamic programme over prefixes of the chain, exact over all cuts and all clocks: every stage, used
    to the full at the pace of one request in ``limit_s``, costs its loaded power and its energy.

    Parameters
    ----------
    latency_s, energy_j
        Of every cluster at every clock, the latter above that of a loaded GPU; shape (clusters, clocks).
    loaded_w
        Power of a loaded GPU; shape (clocks,).
    limit_s
        Time of the longest stage; some cut keeps it at some clock, or a ValueError is raised.
    """
    limit_s *= _EQUAL
    stops, clocks = _thriftiest(latency_s, energy_j, loaded_w * limit_s, limit_s, num_stages)
    if stops[-1] < 0:
        raise ValueError(f"no cut into {num_stages} stages keeps up a pace of {limit_s} s")
    return Clocking(stops=tuple(stops.tolist()), clocks=tuple(clocks.tolist()))


def least_bottleneck(latency_s: Floats, clocks: tuple[int, ...]) -> tuple[int, ...]:
    """Where to cut a chain so that the longest stage is shortest, each stage at a clock that is given.

    A dynamic programme over prefixes of the chain.

    Parameters
    ----------
    latency_s
        As `thriftiest`; there are at least as many clusters as stages.
    clocks
        Index of each stage's clock.

    Returns
    -------
    tuple of int
        For each stage, the index after its last cluster.
    """
    prefix_s = np.concatenate([np.zeros((1, latency_s.shape[1])), np.cumsum(latency_s, axis=0)])
    ahead = np.triu(np.ones((len(prefix_s), len(prefix_s)), dtype=np.bool_), 1)
    worst_s = np.where(np.arange(len(prefix_s)) == 0, 0.0, np.inf)
    starts = []
    for clock in clocks:
        stage_s = np.where(ahead, prefix_s[None, :, clock] - prefix_s[:, None, clock], np.inf)
        longest_s = np.maximum(worst_s[:, None], stage_s)
        starts.append(longest_s.argmin(axis=0))
        worst_s = longest_s.min(axis=0)
    stops, stop = [], len(latency_s)
    for start in reversed(starts):
        stops.append(stop)
        stop = int(start[stop])
    return tuple(reversed(stops))


@allocating
def _thriftiest(
    latency_s: Floats, energy_j: Floats, loaded_j: Floats, limit_s: float, num_stages: int
) -> tuple[Integers, Integers]:
    num, num_clocks = latency_s.shape
    stage_j = np.full((num + 1, num + 1), np.inf)
    clock = np.zeros((num + 1, num + 1), dtype=np.int64)
    for start in range(num):
        time_s, above_j = np.zeros(num_clocks), np.zeros(num_clocks)
        for stop in range(start + 1, num + 1):
            time_s += latency_s[stop - 1]
            above_j += energy_j[stop - 1]
            for index in range(num_clocks):
                cost = loaded_j[index] + above_j[index]
                if time_s[index] <= limit_s and cost < stage_j[start, stop]:
                    stage_j[start, stop], clock[start, stop] = cost, index
    best = np.full(num + 1, np.inf)
    best[0] = 0.0
    start_of = np.full((num_stages, num + 1), -1, dtype=np.int64)
    for stage in range(num_stages):
        following = np.full(num + 1, np.inf)
        for stop in range(stage + 1, num + 1):
            for start in range(stage, stop):
                cost = best[start] + stage_j[start, stop]
                if cost < following[stop]:
                    following[stop], start_of[stage, stop] = cost, start
        best = following
    stops, clocks = np.full(num_stages, -1, dtype=np.int64), np.zeros(num_stages, dtype=np.int64)
    if np.isfinite(best[num]):
        stop = num
        for stage in range(num_stages - 1, -1, -1):
            start = start_of[stage, stop]
            stops[stage], clocks[stage] = stop, clock[start, stop]
            stop = start
    return stops, clocks
