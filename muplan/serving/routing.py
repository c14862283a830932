"""Routing: weighted round robin, and how far to look for the shortest expected completion; compiled."""

from __future__ import annotations

from muplan.serving.compiled import compiled
from muplan.serving.layout import Integers, Rows

_ROUNDING_S = 1e-12
"""Times that differ by no more are equal, but for rounding."""


@compiled
def is_beaten(least_s: float, place: int, best_s: float, best: int) -> bool:
    """Whether a replica that would be complete at ``least_s`` if it were idle cannot be before the best.

    Of equals the first goes. Where replicas are looked at in the order of their least times, none after one
    that is beaten can be before the best either.
    """
    ahead_s = least_s - best_s
    return bool(ahead_s > _ROUNDING_S or (ahead_s >= -_ROUNDING_S and best < place))


@compiled
def smooth_round_robin(replicas: Rows, candidate_replica: Integers, first: int, last: int) -> int:
    """Choose among candidates ``first ≤ index < last`` in proportion to their shares, evenly spread.

    Every candidate is credited its share; the richest is chosen and pays the sum. Of equals the first.
    """
    total, best = 0.0, candidate_replica[first]
    for candidate in range(first, last):
        replica = replicas[candidate_replica[candidate]]
        replica.credit += replica.share
        total += replica.share
        if replica.credit > replicas[best].credit + 1e-12:
            best = candidate_replica[candidate]
    replicas[best].credit -= total
    return int(best)
