"""Arrival processes: how the requests of a service come, as frozen descriptions.

Every process is a stationary renewal process in *operational time* (Poisson, Gamma or Weibull intervals of
mean 1), run through a rate: a constant one, one that a Markov chain chooses, or one that a list of rates
gives. `muplan.traces.arrivals` draws them; what theory says of them stands here.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from muplan.serde import Part

Floats = NDArray[np.float64]

PLANNING_WINDOW_S = 1.0
"""Window over which the dispersion of counts is burstiness to planning, where intervals alone do not tell it.

About as long as latency limits are: slower changes of the rate are no bursts to a queue that must be short
again within its limit. Longer windows made the queueing guard so timid that it offered nothing.
"""
MAX_CV = 20.0
"""Largest coefficient of variation that a demand may state, and that planning uses."""

Rate = Annotated[float, Field(gt=0)]
Variation = Annotated[float, Field(gt=0, le=MAX_CV)]


class Poisson(Part):
    """Arrivals that know nothing of each other: exponential intervals."""

    kind: Literal["poisson"] = "poisson"
    rate_rps: Rate

    @property
    def cv(self) -> float:
        """Coefficient of variation of the intervals."""
        return 1.0

    def faster(self, factor: float) -> Poisson:
        """The same process ``factor`` times as fast."""
        return self.model_copy(update={"rate_rps": self.rate_rps * factor})


class Gamma(Part):
    """A renewal process with Gamma intervals; ``cv`` 1 makes it Poisson, more burstier."""

    kind: Literal["gamma"] = "gamma"
    rate_rps: Rate
    cv: Variation = 1.0
    """Coefficient of variation of the intervals."""

    def faster(self, factor: float) -> Gamma:
        """The same process ``factor`` times as fast."""
        return self.model_copy(update={"rate_rps": self.rate_rps * factor})


class Weibull(Part):
    """A renewal process with Weibull intervals.

    At an equal ``cv`` above 1 it has fewer tiny intervals than Gamma, and longer gaps.
    """

    kind: Literal["weibull"] = "weibull"
    rate_rps: Rate
    cv: Annotated[float, Field(ge=0.05, le=MAX_CV)]
    """Coefficient of variation of the intervals."""

    @property
    def shape(self) -> float:
        """The shape k for which the intervals have the stated variation."""
        return weibull_shape(self.cv)

    def faster(self, factor: float) -> Weibull:
        """The same process ``factor`` times as fast."""
        return self.model_copy(update={"rate_rps": self.rate_rps * factor})


class MarkovModulated(Part):
    """A Markov-modulated Poisson process: a hidden state sets the rate for an exponential time.

    Each state lasts ``sojourns_s`` on average; the next is any of the others, all alike.
    """

    kind: Literal["markov-modulated"] = "markov-modulated"
    rates_rps: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=2, max_length=64)
    """Arrivals per second in each state."""
    sojourns_s: tuple[Annotated[float, Field(ge=1e-3)], ...] = Field(min_length=2, max_length=64)
    """Mean time in each state, seconds."""

    @model_validator(mode="after")
    def _states_agree(self) -> Self:
        if len(self.rates_rps) != len(self.sojourns_s):
            raise ValueError(f"has {len(self.rates_rps)} rates_rps and {len(self.sojourns_s)} sojourns_s")
        if not any(self.rates_rps):
            raise ValueError("all rates_rps are 0; at least one state needs arrivals")
        return self

    @property
    def shares(self) -> Floats:
        """Long-run share of the time in each state: all are entered equally often."""
        sojourns_s = np.array(self.sojourns_s)
        return np.asarray(sojourns_s / sojourns_s.sum())

    @property
    def rate_rps(self) -> float:
        """Mean arrivals per second."""
        return float(self.shares @ np.array(self.rates_rps))

    @property
    def cv(self) -> float:
        """What planning takes for the variation of the intervals: √ of the dispersion over a second."""
        return min(math.sqrt(self.dispersion(PLANNING_WINDOW_S)), MAX_CV)

    def dispersion(self, window_s: float = math.inf) -> float:
        """Index of dispersion of the counts in windows: variance over mean, 1 for a Poisson process.

        With generator Q, stationary shares π, rates Λ and mean rate λ,

            I(t) = 1 + 2 / (λ t) ∫₀ᵗ (t − u) c(u) du,   c(u) = π Λ (exp(Q u) − 1 π) Λ 1

        (Fischer and Meier-Hellstern, *The Markov-modulated Poisson process cookbook*, 1993). Chains that
        enter all states alike are reversible, so that exp(Q u) is a sum of decaying exponentials.

        Parameters
        ----------
        window_s
            Length of the windows, seconds; infinite for the limit.
        """
        shares, rates = self.shares, np.array(self.rates_rps)
        leaving = 1.0 / np.array(self.sojourns_s)
        generator = np.tile(leaving[:, None] / (len(rates) - 1), len(rates))
        np.fill_diagonal(generator, -leaving)
        root = np.sqrt(shares)
        decays, vectors = np.linalg.eigh(root[:, None] * generator / root)
        weights = ((root * rates) @ vectors)[:-1] ** 2  # the last, of decay 0, is the mean
        decays = -decays[:-1]
        spread = weights / decays
        if math.isfinite(window_s):
            spread = spread * (1.0 + np.expm1(-decays * window_s) / (decays * window_s))
        return float(1.0 + 2.0 * spread.sum() / self.rate_rps)

    def faster(self, factor: float) -> MarkovModulated:
        """The same process ``factor`` times as fast: its states change so much sooner, too."""
        return self.model_copy(
            update={
                "rates_rps": tuple(rate * factor for rate in self.rates_rps),
                "sojourns_s": tuple(sojourn / factor for sojourn in self.sojourns_s),
            }
        )


class Piecewise(Part):
    """A rate that changes from interval to interval in a circle, such as a day's, with Gamma noise.

    In interval k of a lap the rate is ``rates_rps[k]`` times a Gamma factor of mean 1 and coefficient of
    variation ``noise_cv``, drawn anew for every interval of every lap. Under that rate the arrivals are a
    renewal process with Gamma intervals of variation ``interval_cv`` (1: Poisson).
    """

    kind: Literal["piecewise"] = "piecewise"
    rates_rps: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=1)
    """Arrivals per second in each interval, in the order of time."""
    interval_s: Annotated[float, Field(ge=1e-3)]
    """Length of every interval, seconds."""
    noise_cv: Annotated[float, Field(ge=0, le=MAX_CV)] = 0.0
    """Coefficient of variation of the noise on the rate."""
    interval_cv: Variation = 1.0
    """Coefficient of variation of the arrivals' intervals at a constant rate."""

    @model_validator(mode="after")
    def _has_arrivals(self) -> Self:
        if not any(self.rates_rps):
            raise ValueError("all rates_rps are 0; at least one interval needs arrivals")
        return self

    @property
    def lap_s(self) -> float:
        """Length of a lap, seconds."""
        return self.interval_s * len(self.rates_rps)

    @property
    def rate_rps(self) -> float:
        """Mean arrivals per second, over a lap."""
        return float(np.mean(self.rates_rps))

    @property
    def cv(self) -> float:
        """What planning takes for the variation of the intervals: √ of the dispersion over a second."""
        return min(math.sqrt(self.dispersion(PLANNING_WINDOW_S)), MAX_CV)

    def dispersion(self, window_s: float) -> float:
        """Index of dispersion of the counts in windows that begin at a random moment of the lap.

            I(t) = interval_cv² + 2 / (λ t) ∫₀ᵗ (t − u) c(u) du

        with the rate's covariance c at lag u. It is linear between whole intervals, so Simpson's rule is
        exact on each. The first term is exact for a Poisson process and the limit of long windows otherwise.

        Parameters
        ----------
        window_s
            Length of the windows, seconds.
        """
        rates, width = np.array(self.rates_rps), self.interval_s
        transform = np.fft.rfft(rates - rates.mean())
        covariance = np.fft.irfft(np.abs(transform) ** 2, n=len(rates)) / len(rates)
        num_knots = math.ceil(window_s / width) + 1
        knots = covariance[np.arange(num_knots) % len(rates)]
        knots[0] += self.noise_cv**2 * float((rates**2).mean())
        edges = np.minimum(width * np.arange(num_knots), window_s)
        places = np.arange(num_knots) * width
        middles = (edges[:-1] + edges[1:]) / 2.0

        def weighted(lags: Floats) -> Floats:
            return np.asarray((window_s - lags) * np.interp(lags, places, knots))

        pieces = np.diff(edges) / 6.0 * (weighted(edges[:-1]) + 4.0 * weighted(middles) + weighted(edges[1:]))
        return float(self.interval_cv**2 + 2.0 * pieces.sum() / (self.rate_rps * window_s))

    def at_rate(self, rate_rps: float) -> Piecewise:
        """The same pattern over the same time with another mean rate."""
        factor = rate_rps / self.rate_rps
        return self.model_copy(update={"rates_rps": tuple(rate * factor for rate in self.rates_rps)})

    def faster(self, factor: float) -> Piecewise:
        """The same process ``factor`` times as fast: its rates change so much sooner, too."""
        return self.model_copy(
            update={
                "rates_rps": tuple(rate * factor for rate in self.rates_rps),
                "interval_s": self.interval_s / factor,
            }
        )


ArrivalProcess = Annotated[
    Poisson | Gamma | Weibull | MarkovModulated | Piecewise, Field(discriminator="kind")
]
"""How the requests of a service come."""


def weibull_shape(cv: float) -> float:
    """Shape k of the Weibull distribution whose coefficient of variation is ``cv``.

    ``1 + cv² = Γ(1 + 2/k) / Γ(1 + 1/k)²`` falls in k; found by bisection to the last bits.
    """
    target = math.log1p(cv**2)
    low, high = math.log(0.05), math.log(1000.0)
    for _ in range(80):
        middle = (low + high) / 2.0
        inverse = math.exp(-middle)
        if math.lgamma(1.0 + 2.0 * inverse) - 2.0 * math.lgamma(1.0 + inverse) > target:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2.0)
