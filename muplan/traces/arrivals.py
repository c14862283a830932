"""Draw the arrivals of a process: unit arrivals in operational time, then the clock of its rate."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from muplan.traces.processes import (
    ArrivalProcess,
    Gamma,
    MarkovModulated,
    Piecewise,
    Poisson,
    Weibull,
    weibull_shape,
)

Floats = NDArray[np.float64]

_LEAST_CV = 1e-6
"""Variations below this count as this one: no clock would tell them apart."""


def draw_arrivals(
    process: ArrivalProcess,
    *,
    duration_s: float,
    rng: np.random.Generator,
    phase_s: float | None = None,
) -> Floats:
    """Draw the arrivals of a process over a period.

    The process is stationary: the period begins at a random moment of it, unless ``phase_s`` says where
    in the lap of a piecewise rate it begins.

    Parameters
    ----------
    process
        What to draw.
    duration_s
        Length of the period, seconds.
    phase_s
        Where in its lap a piecewise rate stands at the beginning, seconds; random where None, and of no
        meaning for other processes.

    Returns
    -------
    arrival_s
        Ascending times in [0, duration_s), seconds.
    """
    match process:
        case Poisson() | Gamma():
            return gamma_arrivals(process.rate_rps, process.cv, duration_s=duration_s, rng=rng)
        case Weibull():
            return weibull_arrivals(process.rate_rps, process.cv, duration_s=duration_s, rng=rng)
        case MarkovModulated():
            edges_s, rates_rps = _markov_path(process, duration_s, rng)
            return _under_rate(edges_s, rates_rps, 1.0, rng)
        case Piecewise():
            edges_s, rates_rps = _piecewise_path(process, duration_s, rng, phase_s)
            return _under_rate(edges_s, rates_rps, process.interval_cv, rng)


def gamma_arrivals(rate_rps: float, cv: float, *, duration_s: float, rng: np.random.Generator) -> Floats:
    """Draw the arrivals of a stationary renewal process with Gamma intervals.

    The first arrival is the remainder of an interval that the beginning of the period falls in: a
    uniform part of a length-biased interval, which for Gamma(k) is Gamma(k + 1) (Cox, Renewal
    Theory, 1962, §5). A process that begins with a whole interval would start too quietly or, with
    CV > 1, too busily.

    Parameters
    ----------
    rate_rps
        Mean arrivals per second.
    cv
        Coefficient of variation of the intervals; 1 makes it a Poisson process.
    duration_s
        Length of the period, seconds.

    Returns
    -------
    arrival_s
        Ascending times in [0, duration_s), seconds.
    """
    shape = 1.0 / max(cv, _LEAST_CV) ** 2
    first = rng.random() * rng.standard_gamma(shape + 1.0)  # in units of the Gamma's scale

    def fill(intervals: Floats) -> None:
        rng.standard_gamma(shape, out=intervals)

    return _renewals(
        first, fill, shape * rate_rps, cv=cv, mean_arrivals=rate_rps * duration_s, end=duration_s
    )


def weibull_arrivals(rate_rps: float, cv: float, *, duration_s: float, rng: np.random.Generator) -> Floats:
    """Draw the arrivals of a stationary renewal process with Weibull intervals.

    An interval is ``E^(1/k)`` with E exponential, in units of the scale; a length-biased one has
    Gamma(1 + 1/k) in the place of E, and the first arrival is a uniform part of it.

    Parameters
    ----------
    rate_rps, cv, duration_s
        As `gamma_arrivals`.

    Returns
    -------
    arrival_s
        Ascending times in [0, duration_s), seconds.
    """
    power = 1.0 / weibull_shape(cv)
    first = rng.random() * rng.standard_gamma(1.0 + power) ** power

    def fill(intervals: Floats) -> None:
        rng.standard_exponential(out=intervals)
        np.power(intervals, power, out=intervals)

    scale = math.gamma(1.0 + power) * rate_rps
    return _renewals(first, fill, scale, cv=cv, mean_arrivals=rate_rps * duration_s, end=duration_s)


def _renewals(
    first: float, fill: Callable[[Floats], None], scale: float, *, cv: float, mean_arrivals: float, end: float
) -> Floats:
    """Sums of intervals over ``scale``, from ``first`` on, below ``end``; ``fill`` draws intervals."""
    block = int(mean_arrivals + 4.0 * cv * np.sqrt(mean_arrivals + 1.0)) + 16
    parts, last = [np.array([first])], first
    while last / scale < end:
        elapsed = np.empty(block)
        fill(elapsed)
        np.cumsum(elapsed, out=elapsed)
        elapsed += last
        parts.append(elapsed)
        last = float(elapsed[-1])
    arrivals = np.concatenate(parts)
    arrivals /= scale
    return arrivals[: np.searchsorted(arrivals, end)]


def _under_rate(edges_s: Floats, rates_rps: Floats, cv: float, rng: np.random.Generator) -> Floats:
    """Arrivals under a rate that is constant between edges: unit arrivals, moved to its clock.

    Operational time is the integral of the rate; arrivals of a Poisson process of rate 1 there are an
    inhomogeneous Poisson process here (Çinlar, *Introduction to Stochastic Processes*, 1975, §4.7).

    Parameters
    ----------
    edges_s
        Ascending from 0 to the end of the period; shape (intervals + 1,).
    rates_rps
        Shape (intervals,).
    """
    operational = np.concatenate([[0.0], np.cumsum(rates_rps * np.diff(edges_s))])
    unit = gamma_arrivals(1.0, cv, duration_s=float(operational[-1]), rng=rng)
    arrival_s = np.interp(unit, operational, edges_s)
    return np.asarray(arrival_s[arrival_s < edges_s[-1]])


def _markov_path(
    process: MarkovModulated, duration_s: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Edges and rates of one path of the modulating chain, which begins in its stationary state.

    The first state is one that a random moment falls in, and what is left of its sojourn is
    exponential as the whole. A following state is the one before plus 1 … n − 1, modulo n.
    """
    sojourns_s, num_states = np.array(process.sojourns_s), len(process.sojourns_s)
    state = int(rng.choice(num_states, p=process.shares))
    block = int(1.5 * duration_s / sojourns_s.mean()) + 64
    states, lengths_s = [np.array([state])], [rng.exponential(sojourns_s[state], 1)]
    reached_s = float(lengths_s[0][0])
    while reached_s < duration_s:
        following = (states[-1][-1] + np.cumsum(rng.integers(1, num_states, block))) % num_states
        states.append(following)
        lengths_s.append(rng.standard_exponential(block) * sojourns_s[following])
        reached_s += float(lengths_s[-1].sum())
    edges_s = np.concatenate([[0.0], np.cumsum(np.concatenate(lengths_s))])
    return _until(edges_s, np.array(process.rates_rps)[np.concatenate(states)], duration_s)


def _piecewise_path(
    process: Piecewise, duration_s: float, rng: np.random.Generator, phase_s: float | None
) -> tuple[Floats, Floats]:
    """Edges and rates, with their noise, of a piecewise rate from a phase on."""
    start_s = rng.random() * process.lap_s if phase_s is None else phase_s % process.lap_s
    first = int(start_s // process.interval_s)
    num_intervals = math.ceil((start_s + duration_s) / process.interval_s) - first + 1
    numbers = first + np.arange(num_intervals + 1)
    edges_s = np.maximum(numbers * process.interval_s - start_s, 0.0)
    rates_rps = np.array(process.rates_rps)[numbers[:-1] % len(process.rates_rps)]
    if process.noise_cv > 0.0:
        shape = 1.0 / max(process.noise_cv, _LEAST_CV) ** 2
        rates_rps = rates_rps * rng.standard_gamma(shape, num_intervals) / shape
    return _until(edges_s, rates_rps, duration_s)


def _until(edges_s: Floats, rates_rps: Floats, duration_s: float) -> tuple[Floats, Floats]:
    """A path, cut at the end of the period."""
    kept = int(np.searchsorted(edges_s, duration_s))
    return np.append(edges_s[:kept], duration_s), rates_rps[:kept]
