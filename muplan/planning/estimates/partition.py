"""Partitions: which clusters run on which stage.

A contiguous partition cuts the chain of clusters (`muplan.planning.estimates.cuts` finds those worth
having). A sensitivity-grouped partition puts clusters of like sensitivity on the same GPUs, wherever
they stand in the chain, and pays a transfer at each crossing.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from muplan.planning.stated.model import StageClusters

Floats = NDArray[np.float64]


def contiguous_partition(stops: tuple[int, ...]) -> StageClusters:
    """Cluster ranges of contiguous stages, given the index after each one's last cluster."""
    return tuple(((start, stop),) for start, stop in pairwise((0, *stops)))


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
