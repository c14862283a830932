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
FIRST_PRICE, LEAST_PRICE, MOST_PRICE = 10.0, 0.1, 1e4
"""Prices of a miss, in energies of a request."""
BURST_DOUBT, QUEUE_DOUBT = 0.001, 0.01
"""How much a chance of being late that no prediction sees weighs against one that is seen: of a burst, of a
queue at the estimated rates.

Small, but above 0: the price of misses therefore always acts, whatever is predicted.
"""
LEAST_AIM, MOST_AIM = 0.5, 0.9
"""The part of the misses that a target allows which `forecast` aims for, at first and at most."""


@compiled
def smoothed_rate(rate_rps: float, num_arrived: int, period_s: float) -> float:
    """The estimate of an arrival rate after a period, requests/s: an exponential average over `MEMORY_S`."""
    weight = -np.expm1(-period_s / MEMORY_S)
    return float(rate_rps + weight * (num_arrived / period_s - rate_rps))


@compiled
def learned_price(price: float, num_completed: int, num_within: int, target: float, num_seen: int) -> float:
    """The price of a miss after so many completions.

    In logarithms a miss adds η (1 − α) and a request in time takes η α, with α the share of misses aimed
    for: the price is still where misses are α of all requests, whatever the predictions that it weighs are
    worth (dual ascent on the attainment constraint, by multiplicative weights; the same step as in Gibbs
    and Candès, *Adaptive conformal inference under distribution shift*, NeurIPS 2021, eq. 2). It aims two
    standard deviations (of a Poisson count) below the misses that ``num_seen`` requests were allowed.
    """
    allowed = num_seen * (1.0 - target)
    aim = 1.0 - 2.0 / np.sqrt(max(allowed, 1.0))
    share = min(max(aim, LEAST_AIM), MOST_AIM) * (1.0 - target)
    step = (num_completed - num_within) * (1.0 - share) - num_within * share
    return float(min(max(price * np.exp(LEARNING * step), LEAST_PRICE), MOST_PRICE))


@compiled
def late_share(load: float, work_s: float, slack_s: float, wait_s: float) -> float:
    """The share of requests expected to be late at a station for reasons that no prediction sees.

    A burst of more than n passes has the chance 1 / (1 + n)²: heavy-tailed and the same for all arrivals, as
    the price of misses that it is multiplied by is learned. A queue is that of M/D/1 with an exponential
    tail, P(wait > t) ≈ ρ exp(−2 (1 − ρ) t / work), whose mean is exact (Pollaczek–Khinchine).

    Parameters
    ----------
    load, work_s
        Utilisation ρ of the station and its mean pass; all are late where ρ is 1 or more.
    slack_s
        By how much the next request is expected to be early.
    wait_s
        How long a request may wait at most.
    """
    if load >= 1.0:
        return 1.0
    burst = (1.0 + max(slack_s, 0.0) / work_s) ** -2.0
    queue = load * np.exp(-2.0 * (1.0 - load) * max(wait_s, 0.0) / work_s)
    return float(BURST_DOUBT * burst + QUEUE_DOUBT * queue)


@compiled
def moved_level(level: int, wanted: int, since_change_s: float, dwell_s: float) -> int:
    """The level to go to: up at once, down only after a dwell."""
    return wanted if wanted > level or since_change_s >= dwell_s else level
