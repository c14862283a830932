"""Routing by weighted round robin over the rows of replicas; compiled."""

from __future__ import annotations

from muplan.serving.compiled import compiled
from muplan.serving.layout import Integers, Rows


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
