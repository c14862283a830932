"""Routing: weighted round robin, draws of power of two, how far to look for the soonest; compiled."""

from __future__ import annotations

import numpy as np

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


@compiled
def drawn_pair(seed: int, request: int, first: int, last: int) -> tuple[int, int]:
    """Draw two different candidates ``first ≤ index < last``, the lesser first; all pairs are as likely.

    A pure function of the seed and the request's number, so that any executor draws the same. For two
    choices: Mitzenmacher, The power of two choices in randomized load balancing, IEEE TPDS 12, 2001.
    """
    count = last - first
    one = np.int64(_mixed(seed, 2 * request) % np.uint64(count))
    other = np.int64(_mixed(seed, 2 * request + 1) % np.uint64(count - 1))
    other += 1 if other >= one else 0
    return int(first + min(one, other)), int(first + max(one, other))


@compiled
def _mixed(seed: int, number: int) -> np.uint64:
    """The ``number``-th of the random words of a seed: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    word = np.uint64(seed) + np.uint64(number + 1) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.uint64(word ^ (word >> np.uint64(31)))
