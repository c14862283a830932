"""Clock policies that predict: arrival rates, waits, the price of a miss, when to move; pure, compiled.

The simulator's kernels call them, and a real-time executor calls the same functions.
"""

from __future__ import annotations

import numpy as np

from muplan.serving.compiled import compiled

MEMORY_S = 20.0
"""Time over which estimates of arrival rates forget."""

LEARNING = 0.5
"""η: a miss multiplies the price of misses by e to nearly this power."""
FIRST_PRICE, LEAST_PRICE, MOST_PRICE = 10.0, 0.1, 1e8
"""Prices of a miss, in energies of a request."""
DOUBT = 0.01
"""The part of what a queue without control would have late that is expected in spite of control.

Small, but above 0: a high enough price therefore leads to the highest clocks, whatever else is predicted.
"""
AIM = 0.5
"""The part of the misses that a target allows which `forecast` aims for; the rest is for what it learns late."""


@compiled
def smoothed_rate(rate_rps: float, num_arrived: int, period_s: float) -> float:
    """The estimate of an arrival rate after a period, requests/s: an exponential average over `MEMORY_S`."""
    weight = -np.expm1(-period_s / MEMORY_S)
    return float(rate_rps + weight * (num_arrived / period_s - rate_rps))


@compiled
def learned_price(price: float, num_completed: int, num_within: int, target: float) -> float:
    """The price of a miss after so many completions.

    In logarithms a miss adds η (1 − α) and a request in time takes η α, with α the share of misses aimed
    for: the price is still where misses are α of all requests, whatever the predictions that it weighs are
    worth (dual ascent on the attainment constraint, by multiplicative weights; the same step as in Gibbs
    and Candès, *Adaptive conformal inference under distribution shift*, NeurIPS 2021, eq. 2).
    """
    share = AIM * (1.0 - target)
    step = (num_completed - num_within) * (1.0 - share) - num_within * share
    return float(min(max(price * np.exp(LEARNING * step), LEAST_PRICE), MOST_PRICE))


@compiled
def late_share(load: float, work_s: float, allowed_s: float) -> float:
    """The share of requests that wait longer than ``allowed_s`` at a station of constant work.

    M/D/1 with an exponential tail, P(wait > t) ≈ ρ exp(−2 (1 − ρ) t / work), whose mean is exact
    (Pollaczek–Khinchine); 1 where the load ρ is 1 or more.
    """
    if load >= 1.0 or allowed_s < 0.0:
        return 1.0
    return float(load * np.exp(-2.0 * (1.0 - load) * allowed_s / work_s))


@compiled
def moved_level(level: int, wanted: int, since_change_s: float, dwell_s: float) -> int:
    """The level to go to: up at once, down only after a dwell."""
    return wanted if wanted > level or since_change_s >= dwell_s else level
