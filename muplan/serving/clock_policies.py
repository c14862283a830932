"""Clock policies that predict: arrival rates, waits, caution that is learned, when to move; pure, compiled.

The simulator's kernels call them, and a real-time executor calls the same functions.
"""

from __future__ import annotations

import numpy as np

from muplan.serving.compiled import compiled

MEMORY_S = 20.0
"""Time over which estimates of arrival rates forget."""

LEARNING = 0.5
"""A miss multiplies the caution by e to this power, less what a request in time takes."""
LEAST_CAUTION, MOST_CAUTION = 0.05, 50.0
AIM = 0.5
"""The part of the misses that a target allows which `forecast` aims for; the rest is for what it learns late."""


@compiled
def smoothed_rate(rate_rps: float, num_arrived: int, period_s: float) -> float:
    """The estimate of an arrival rate after a period, requests/s: an exponential average over `MEMORY_S`."""
    weight = -np.expm1(-period_s / MEMORY_S)
    return float(rate_rps + weight * (num_arrived / period_s - rate_rps))


@compiled
def learned_caution(caution: float, num_completed: int, num_within: int, target: float) -> float:
    """The caution after so many completions.

    In logarithms a miss adds η (1 − α) and a request in time takes η α, with α the share of misses aimed
    for: where misses are α of all requests it stays, whatever the prediction that it corrects is worth
    (Gibbs and Candès, *Adaptive conformal inference under distribution shift*, NeurIPS 2021, eq. 2).
    """
    share = AIM * (1.0 - target)
    step = (num_completed - num_within) * (1.0 - share) - num_within * share
    return float(min(max(caution * np.exp(LEARNING * step), LEAST_CAUTION), MOST_CAUTION))


@compiled
def tail_wait_s(load: float, work_s: float, target: float) -> float:
    """The wait that at most 1 − ``target`` of requests exceed at a station of constant work, seconds.

    M/D/1 with an exponential tail, P(wait > t) ≈ ρ exp(−2 (1 − ρ) t / work): its mean is exact
    (Pollaczek–Khinchine). Infinite where the load is 1 or more.
    """
    if load >= 1.0:
        return np.inf
    if load <= 1.0 - target:
        return 0.0
    return float(work_s / (2.0 * (1.0 - load)) * np.log(load / (1.0 - target)))


@compiled
def moved_level(level: int, needed: int, wanted: int, since_change_s: float, dwell_s: float) -> int:
    """The level to go to: up at once where one is ``needed``, else to the ``wanted`` one after a dwell."""
    if needed > level or since_change_s >= dwell_s:
        return wanted
    return level
