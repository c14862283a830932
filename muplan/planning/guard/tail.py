"""The queueing guard: the highest utilisation at which a service's waits stay within its slack.

The waiting time W of a G/G/m queue is taken to have an exponential tail,

    P(W > t) ≈ P_w · exp(−t / w),   w = (c_a² + c_s²)/2 · s / (m (1 − ρ)),   P_w = ρ^(√(2(m+1)) − 1)

with service time s, squared coefficients of variation c_a² of the inter-arrival and c_s² of the
service times. w is the mean wait of those who wait: Kingman's heavy-traffic scaling (1961) applied
to M/M/m (Allen and Cunneen; Allen, 1990, §5.3); P_w is the delay probability that Sakasegawa's
formula (1977) implies; that the tail is exponential is exact for M/M/m and holds asymptotically for
G/G/m (Whitt, 1993). The guard is an estimate: the planner corrects it by simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_UTILISATION = 0.98
"""No group is planned above this utilisation, however loose its limits."""

_NUM_HALVINGS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """Arrivals of a service: rate, and squared coefficient of variation of inter-arrival times."""

    rate_rps: float
    scv: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Merged streams: rate-weighted mean of their variations, and v = 1 / Σ p² of their parts p."""

    mean_scv: float
    spread: float


def merge(streams: Sequence[Stream]) -> Mix:
    """Merge arrival streams."""
    rates = np.array([stream.rate_rps for stream in streams])
    return merge_rates(rates, np.array([stream.scv for stream in streams]), float(len(streams)))


def merge_rates(rate_rps: Floats, scv: Floats, most: float) -> Mix:
    """Merge streams of given rates and variations, of which at most ``most`` come together."""
    parts = rate_rps / rate_rps.sum()
    return Mix(mean_scv=float(parts @ scv), spread=min(1.0 / float(parts @ parts), most))


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue to guard.

    Parameters
    ----------
    slack_s
        Latency limit less the time from dispatch to completion.
    service_s
        Time that a request occupies a server.
    service_scv
        Squared coefficient of variation of the service times.
    servers
        Servers that the requests are pooled over.
    arrivals
        The merged arrivals.
    miss
        Highest allowed probability that a wait exceeds the slack.
    """

    slack_s: float
    service_s: float
    service_scv: float
    servers: float
    arrivals: Mix
    miss: float


def merged_scv(mean_scv: Floats, spread: Floats, utilisation: Floats) -> Floats:
    """Squared coefficient of variation of merged streams, as a queue at ``utilisation`` sees it.

    Whitt's hybrid of the asymptotic and the stationary-interval method (The Queueing Network
    Analyzer, 1983, §4.3): weight w = 1 / (1 + 4 (1 − ρ)² (v − 1)) on the rate-weighted mean, the rest
    on a Poisson stream, v = 1 / Σ p². The arguments broadcast.
    """
    weight = 1.0 / (1.0 + 4.0 * (1.0 - utilisation) ** 2 * (spread - 1.0))
    return np.asarray(weight * mean_scv + 1.0 - weight)


def miss_probability(
    *, slack_s: Floats, service_s: Floats, scv: Floats, servers: Floats, utilisation: Floats
) -> Floats:
    """Probability that a wait exceeds ``slack_s``; the arguments broadcast.

    Parameters
    ----------
    scv
        Sum of the squared coefficients of variation of inter-arrival and service times.
    """
    delayed = utilisation ** (np.sqrt(2.0 * (servers + 1.0)) - 1.0)
    wait_s = scv / 2.0 * service_s / (servers * (1.0 - utilisation))
    tail = np.exp(-np.maximum(slack_s, 0.0) / np.maximum(wait_s, 1e-300))
    return np.where(slack_s < 0, 1.0, delayed * tail)


def max_utilisation(queue: Queue) -> float:
    """`max_utilisations` of one queue."""
    return float(max_utilisations([queue])[0])


def max_utilisations(queues: Sequence[Queue]) -> Floats:
    """The highest utilisation of each queue at which a wait exceeds its slack rarely enough.

    0 where the slack is negative; never above `MAX_UTILISATION`. Found by bisection; shape (queues,).
    """
    table = np.array(
        [
            (
                queue.slack_s,
                queue.service_s,
                queue.service_scv,
                queue.servers,
                queue.arrivals.mean_scv,
                queue.arrivals.spread,
                queue.miss,
            )
            for queue in queues
        ]
    ).reshape(len(queues), 7)
    slack_s, service_s, service_scv, servers, mean_scv, spread, miss = table.T
    return highest_utilisations(
        slack_s=slack_s,
        service_s=service_s,
        service_scv=service_scv,
        servers=servers,
        mean_scv=mean_scv,
        spread=spread,
        miss=miss,
    )


def highest_utilisations(
    *,
    slack_s: Floats,
    service_s: Floats,
    service_scv: Floats,
    servers: Floats,
    mean_scv: Floats,
    spread: Floats,
    miss: Floats,
) -> Floats:
    """`max_utilisations` of queues given as arrays, which broadcast; parameters as `Queue` and `Mix`."""

    def holds(utilisation: Floats) -> NDArray[np.bool_]:
        scv = merged_scv(mean_scv, spread, utilisation) + service_scv
        probability = miss_probability(
            slack_s=slack_s, service_s=service_s, scv=scv, servers=servers, utilisation=utilisation
        )
        return np.asarray(probability <= miss)

    shape = np.broadcast_shapes(*(np.shape(item) for item in (slack_s, service_s, servers, mean_scv, miss)))
    high = np.full(shape, MAX_UTILISATION)
    low = np.where(holds(high), high, 0.0)
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2.0
        good = holds(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return np.where(slack_s < 0, 0.0, low)
