"""Clusters of operators of like sensitivity along a model's graph.

The graph is first cut into *segments* wherever only the residual stream is live. A *cluster* is a
run of segments of one block instance (one layer), or several whole instances of one block. Among all
such partitions the dynamic programme takes the one that minimises

    Σ_clusters Σ_segments w_i ‖s_i − s̄‖²  +  tolerance · (clusters / segments)

with w_i the segment's share of time, s_i its sensitivities (one per phase) and s̄ their time-weighted
mean in the cluster: the time-weighted variance of sensitivity within clusters, plus a price on their
number. The price is relative to the number of segments, so the same layer is cut the same way in a
short and in a long model: two equal halves of a layer part when their sensitivities differ by more
than ``sqrt(2 · tolerance)``. A cluster of more than one segment takes at most ``max_share`` of the
time, so that pipelines can be balanced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.errors import InputError
from muplan.model.graph import Block, ModelGraph, Operator

Floats = NDArray[np.float64]

SENSITIVITY_TOLERANCE = 0.01
MAX_SHARE = 1 / 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Operators between two cut points of a block.

    ``block`` and ``part`` index the graph's blocks and the segments of one instance of the block;
    equal pairs are equal segments. ``instance`` counts the block's repetitions.
    """

    block: int
    instance: int
    part: int
    num_parts: int
    operators: tuple[Operator, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Time share (segments, phases) and sensitivity (segments, phases) of every segment."""

    shares: Floats
    sensitivities: Floats


def segments_of(graph: ModelGraph) -> tuple[Segment, ...]:
    """Cut a graph at every point where only the residual stream is live."""
    segments: list[Segment] = []
    for index, block in enumerate(graph.used_blocks()):
        parts = _parts(block)
        segments += [
            Segment(block=index, instance=instance, part=part, num_parts=len(parts), operators=operators)
            for instance in range(block.repeat)
            for part, operators in enumerate(parts)
        ]
    return tuple(segments)


def _parts(block: Block) -> list[tuple[Operator, ...]]:
    parts: list[tuple[Operator, ...]] = []
    current: list[Operator] = []
    for operator in block.operators:
        current.append(operator)
        if operator.cut_after:
            parts.append(tuple(current))
            current = []
    if current:
        raise InputError(
            f"Block {block.name!r} of the graph ends where more than one activation is live"
            f" (after {current[-1].name!r}).",
            "Mark its last operator cut_after, or move the operators into the next block.",
        )
    return parts


def may_join(segments: Sequence[Segment], start: int, stop: int) -> bool:
    """Return whether ``segments[start:stop]`` may be one cluster: part of an instance, or whole instances."""
    first, last = segments[start], segments[stop - 1]
    if first.block != last.block:
        return False
    is_whole = first.part == 0 and last.part == last.num_parts - 1
    return first.instance == last.instance or is_whole


def cluster_segments(
    segments: Sequence[Segment],
    costs: Costs,
    *,
    tolerance: float = SENSITIVITY_TOLERANCE,
    max_share: float = MAX_SHARE,
) -> tuple[tuple[int, int], ...]:
    """Partition the segments into clusters by dynamic programming.

    Parameters
    ----------
    costs
        Shares sum to 1 over the segments in each phase.
    tolerance
        Price of cutting at every segment, in units of squared sensitivity.
    max_share
        The most time, in any phase, of a cluster of more than one segment.

    Returns
    -------
    tuple
        Half-open ranges of segments, in order. Of equally good partitions, the one whose earliest
        clusters are longest.
    """
    count = len(segments)
    best = np.full(count + 1, np.inf)
    best[count] = 0.0
    stop_of = np.zeros(count, dtype=int)
    for start in range(count - 1, -1, -1):
        for stop in range(start + 1, count + 1):
            if segments[stop - 1].block != segments[start].block:
                break
            if not is_allowed(segments, costs, start, stop, max_share):
                continue
            total = cluster_cost(costs, start, stop, tolerance) + best[stop]
            if total <= best[start] * (1 + 1e-12) + 1e-15:
                best[start], stop_of[start] = min(total, best[start]), stop
    ranges, start = [], 0
    while start < count:
        ranges.append((start, int(stop_of[start])))
        start = int(stop_of[start])
    return tuple(ranges)


def is_allowed(segments: Sequence[Segment], costs: Costs, start: int, stop: int, max_share: float) -> bool:
    """Return whether a range of segments may be a cluster."""
    if stop - start == 1:
        return True
    share = costs.shares[start:stop].sum(axis=0).max()
    return bool(share <= max_share) and may_join(segments, start, stop)


def cluster_cost(costs: Costs, start: int, stop: int, tolerance: float) -> float:
    """Return the cost of one cluster: its within-cluster variance, averaged over phases, and its price."""
    weights = costs.shares[start:stop]
    values = costs.sensitivities[start:stop]
    totals = weights.sum(axis=0)
    means = (weights * values).sum(axis=0) / np.where(totals > 0, totals, 1.0)
    variance = float((weights * (values - means) ** 2).sum(axis=0).mean())
    return variance + tolerance / len(costs.shares)
