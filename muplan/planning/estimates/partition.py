"""Partitions: which clusters run on which stage.

A contiguous partition cuts the chain of clusters; `pareto_cuts` finds every one that no other beats
in both transfer time and bottleneck. A sensitivity-grouped partition puts clusters of like
sensitivity on the same GPUs, wherever they stand in the chain, and pays a transfer at each crossing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from muplan.planning.stated.model import StageClusters

Floats = NDArray[np.float64]

_MAX_CUTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """A contiguous partition: where it cuts, its bottleneck stage, and the sum of its transfers."""

    stops: tuple[int, ...]
    """For each stage, the index after its last cluster; the last is the number of clusters."""
    bottleneck_s: float
    transfer_s: float

    @property
    def stage_clusters(self) -> StageClusters:
        """Cluster ranges of every stage."""
        starts = (0, *self.stops[:-1])
        return tuple(((start, stop),) for start, stop in zip(starts, self.stops, strict=True))


def pareto_cuts(times_s: Floats, transfers_s: Floats, num_stages: int) -> tuple[Cuts, ...]:
    """Every pair (transfer time, bottleneck) that no contiguous partition beats in both.

    Parameters
    ----------
    times_s
        Time of every cluster; shape (clusters,).
    transfers_s
        Time to hand the output of every cluster to another stage; shape (clusters,).
    num_stages
        Stages; each gets at least one cluster.

    Returns
    -------
    tuple of Cuts
        By falling transfer time, so the smallest bottleneck stands first; at most eight are kept,
        the smallest bottlenecks. Empty where there are fewer clusters than stages.
    """
    found: list[Cuts] = []
    limit_s = np.inf
    while (cuts := _least_transfer(times_s, transfers_s, num_stages, limit_s)) is not None:
        found.append(cuts)
        limit_s = cuts.bottleneck_s
    return tuple(reversed(found))[:_MAX_CUTS]


def _least_transfer(times_s: Floats, transfers_s: Floats, num_stages: int, below_s: float) -> Cuts | None:
    """The least transfer time, then the least bottleneck, with every stage shorter than ``below_s``.

    Dynamic programme over prefixes: both criteria are monotone in a prefix's, so the lexicographic
    optimum of a chain holds that of its prefix.
    """
    num = len(times_s)
    prefix = np.concatenate(([0.0], np.cumsum(times_s)))
    segment = prefix[None, :] - prefix[:, None]  # [start][stop]
    allowed = (segment < below_s * (1 - 1e-12)) & (np.arange(num + 1)[:, None] < np.arange(num + 1)[None, :])
    handover = np.concatenate(([0.0], transfers_s[:-1], [0.0]))  # paid when a stage starts at a cluster
    cost = np.full(num + 1, np.inf)
    worst = np.full(num + 1, np.inf)
    cost[0], worst[0] = 0.0, 0.0
    choices = []
    for _ in range(num_stages):
        costs = np.where(allowed, (cost + handover)[:, None], np.inf)
        peaks = np.maximum(worst[:, None], segment)
        least = costs.min(axis=0)
        peaks = np.where(costs <= least + 1e-15, peaks, np.inf)
        choice = peaks.argmin(axis=0)
        choices.append(choice)
        cost, worst = least, np.where(np.isfinite(least), peaks.min(axis=0), np.inf)
    if not np.isfinite(cost[num]):
        return None
    stops, stop = [], num
    for choice in reversed(choices):
        stops.append(stop)
        stop = int(choice[stop])
    return Cuts(stops=tuple(reversed(stops)), bottleneck_s=float(worst[num]), transfer_s=float(cost[num]))


def grouped_partitions(scores: Floats) -> tuple[StageClusters, ...]:
    """Two-stage partitions by sensitivity: the more sensitive clusters on one set of GPUs.

    Parameters
    ----------
    scores
        Sensitivity score of every cluster; shape (clusters,).

    Returns
    -------
    tuple of StageClusters
        One for each threshold between neighbouring scores; the stage of the first cluster stands first.
    """
    partitions = []
    for threshold in np.unique(scores)[1:]:
        sensitive = scores >= threshold
        first = bool(sensitive[0])
        partitions.append((_ranges(sensitive == first), _ranges(sensitive != first)))
    return tuple(partitions)


def crossings(stage_clusters: StageClusters) -> tuple[tuple[int, int, int], ...]:
    """Clusters whose output goes to another stage, ascending, each with its own and the next one's stage."""
    ranges = sorted((start, stop, stage) for stage, mine in enumerate(stage_clusters) for start, stop in mine)
    return tuple(
        (stop - 1, stage, following)
        for (_, stop, stage), (_, _, following) in pairwise(ranges)
        if stage != following
    )


def _ranges(chosen: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], chosen, [False])).astype(np.int8)))
    return tuple((int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True))
