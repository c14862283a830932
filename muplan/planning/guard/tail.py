"""The queueing guard: the highest utilisation at which a service's waits stay within its slack.

The waiting time W of a G/G/m queue is taken to have an exponential tail,

    P(W > t) ≈ P_w · exp(−θ t),   ln(1 + θ ν / λ) / ν = −ln(1 − θ s c_s² / m) / c_s²

with service time s (Gamma, squared coefficient of variation c_s²) and intervals that are Gamma with the
rate λ and the squared coefficient of variation ν. θ is the exponent of Cramér and Lundberg, with which
Kingman (1964) bounds the tail of GI/G/1 for every distribution; the m servers count as one that is m
times as fast. Bursts make it far smaller at low utilisations than the first two moments tell: what
counts is how many requests come within the slack. P_w is the greater of the delay probability that
Sakasegawa's formula (1977) implies and of the part of the requests that follow closely on another.
The guard is an estimate: the planner corrects it by simulation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_UTILISATION = 0.98
"""No group is planned above this utilisation, however loose its limits."""

_NUM_HALVINGS = 24


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
    burstiness
        Of the arrivals, as `burstiness` has it; at least 1.
    miss
        Highest allowed probability that a wait exceeds the slack.
    """

    slack_s: float
    service_s: float
    service_scv: float
    servers: float
    burstiness: float
    miss: float


def burstiness(scv: Floats, expected: Floats) -> Floats:
    """Squared coefficient of variation of Gamma intervals as a window of time sees them.

    Intervals longer than the window part clumps. Of clumps of B requests on average, geometric in number
    and apart like a Poisson process, the arrivals would have 2 B − 1; over a short window that is less
    than the intervals' own, which long waits see. At least 1: merged regular streams are nearly Poisson.

    Parameters
    ----------
    scv
        Of the intervals.
    expected
        Requests expected in the window.
    """
    from scipy.special import gammaincc

    parted = np.maximum(gammaincc(1.0 / scv, np.maximum(expected, 0.0) / scv), 1e-12)
    return np.asarray(np.maximum(1.0, np.minimum(scv, 2.0 / parted - 1.0)))


def max_utilisation(queue: Queue) -> float:
    """The highest utilisation of a queue at which a wait exceeds its slack rarely enough."""
    return float(
        highest_utilisations(
            slack_s=np.array(queue.slack_s),
            service_s=np.array(queue.service_s),
            service_scv=queue.service_scv,
            servers=np.array(queue.servers),
            bursts=np.array(queue.burstiness),
            miss=np.array(queue.miss),
        )
    )


def delay_probability(*, utilisation: Floats, servers: Floats, bursts: Floats) -> Floats:
    """Probability that a request waits at all; the arguments broadcast."""
    busy = utilisation ** (np.sqrt(2.0 * (servers + 1.0)) - 1.0)
    return np.asarray(np.maximum(busy, 1.0 - 1.0 / bursts))


def highest_utilisations(
    *,
    slack_s: Floats,
    service_s: Floats,
    service_scv: float,
    servers: Floats,
    bursts: Floats,
    miss: Floats,
) -> Floats:
    """`max_utilisation` of queues given as arrays, which broadcast; parameters as `Queue`.

    0 where the slack is negative; never above `MAX_UTILISATION`. For a given delay probability the
    exponent that is needed, and with it the rate, are closed forms; the delay probability rises with
    the utilisation, so that bisection finds where the two agree.
    """
    per_wait = service_s / (servers * np.maximum(slack_s, 1e-300))

    def holds(utilisation: Floats) -> NDArray[np.bool_]:
        delayed = delay_probability(utilisation=utilisation, servers=servers, bursts=bursts)
        exponent = np.log(np.maximum(delayed / miss, 1.0 + 1e-9)) * per_wait
        return np.asarray((delayed <= miss) | (utilisation <= _carried(exponent, service_scv, bursts)))

    shape = np.broadcast_shapes(*(np.shape(item) for item in (slack_s, service_s, servers, bursts, miss)))
    high = np.full(shape, MAX_UTILISATION)
    low = np.where(holds(high), high, 0.0)
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2.0
        good = holds(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return np.where(slack_s < 0, 0.0, low)


def _carried(exponent: Floats, service_scv: float, bursts: Floats) -> Floats:
    """The utilisation whose waits fall off with an exponent, in units of a service time over the servers."""
    work = exponent
    if service_scv > 0:
        inside = np.maximum(1.0 - exponent * service_scv, 0.0)
        with np.errstate(divide="ignore"):
            work = -np.log(inside) / service_scv
    return np.asarray(exponent * bursts / np.expm1(np.minimum(bursts * work, 700.0)))
