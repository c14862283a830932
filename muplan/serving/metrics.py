"""Metrics of a simulation: attainment, latencies, power, energy."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from muplan.problem.problem import Problem, ResolvedService
from muplan.serving.records import Records
from muplan.serving.token_intervals import quantiles_s

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
_Requests = NDArray[np.intp] | slice

_QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class Latency:
    """Mean and percentiles of a time, seconds; NaN where no request has it."""

    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    p999_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceMetrics:
    """How one service fared, over the requests that arrived in the measured period."""

    service: str
    target: float
    num_requests: int
    num_rejected: int
    num_within: int
    rate_rps: float
    latency: Latency
    """End to end."""
    ttft: Latency | None
    """Time to first token; generate services only."""
    tpot: Latency | None
    """Time per output token after the first; generate services only."""
    itl: Latency | None
    """Time between successive tokens; generate services of detailed simulations only."""
    mean_batch: float

    @property
    def attainment(self) -> float:
        """Share of requests within the limits, rejected ones counted as misses; 1 without requests."""
        return self.num_within / self.num_requests if self.num_requests else 1.0

    @property
    def meets_target(self) -> bool:
        """Whether the attainment reaches the target."""
        return self.attainment >= self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """How a deployment fared in the measured period."""

    measured_s: float
    power_w: float
    busy_j: float
    loaded_j: float
    parked_j: float
    goodput_rps: float
    """Requests within their limits per second."""
    energy_per_request_j: float
    """Energy of the fleet over requests served; NaN without any."""
    energy_per_token_j: float
    """Energy of the fleet over output tokens of generate requests served; NaN without any."""
    services: tuple[ServiceMetrics, ...]

    @property
    def meets_targets(self) -> bool:
        """Whether every service reaches its target."""
        return all(service.meets_target for service in self.services)

    def service(self, name: str) -> ServiceMetrics:
        """The metrics of a service."""
        return next(service for service in self.services if service.service == name)


class _Outcome(NamedTuple):
    """Of all requests whether they kept their limits, and how long they took; shape (requests,) each."""

    within: Flags
    latency_s: Floats


def measure(records: Records, problem: Problem) -> Metrics:
    """Compute the metrics of a simulation.

    Counted are the requests that arrived in the measured period, whenever they ended; energy is that
    of the measured period.
    """
    number = records.service.astype(np.min_scalar_type(len(problem.services)))
    counted, rejected = records.counted, records.rejected
    num_rejected = np.bincount(number[counted & rejected], minlength=len(problem.services))
    served = np.flatnonzero(counted & ~rejected)
    served = served[np.argsort(number[served], kind="stable")]  # linear in time, as the numbers are short
    ends = np.searchsorted(number[served], np.arange(len(problem.services) + 1))
    by_service = [served[begin:end] for begin, end in pairwise(ends)]
    outcome = _Outcome(within_limits(records, problem), _latency_s(records, slice(None)))
    services = tuple(
        _service_metrics(records, service, mine, int(lost), outcome)
        for service, mine, lost in zip(problem.services, by_service, num_rejected, strict=True)
    )
    num_tokens = sum(
        int(records.output_tokens[mine].sum())
        for service, mine in zip(problem.services, by_service, strict=True)
        if service.request_kind == "generate"
    )
    num_served = sum(service.num_requests - service.num_rejected for service in services)
    return Metrics(
        measured_s=records.measured_s,
        power_w=records.power_w,
        busy_j=records.busy_j,
        loaded_j=records.loaded_j,
        parked_j=records.parked_j,
        goodput_rps=sum(service.num_within for service in services) / records.measured_s,
        energy_per_request_j=records.energy_j / num_served if num_served else float("nan"),
        energy_per_token_j=records.energy_j / num_tokens if num_tokens else float("nan"),
        services=services,
    )


def within_limits(records: Records, problem: Problem) -> Flags:
    """Which requests were served within all limits of their service; shape (requests,)."""
    limits = [service.limits for service in problem.services]
    within = ~records.rejected
    for limit_s, taken_s in (
        ([limit.latency_s for limit in limits], _latency_s),
        ([limit.ttft_s for limit in limits], _ttft_s),
        ([limit.tpot_s for limit in limits], _tpot_s),
    ):
        if np.isfinite(limit_s).any():
            within &= taken_s(records, slice(None)) <= np.array(limit_s)[records.service]
    return np.asarray(within)


def _service_metrics(
    records: Records,
    service: ResolvedService,
    served: NDArray[np.intp],
    num_rejected: int,
    outcome: _Outcome,
) -> ServiceMetrics:
    """The metrics of a service, of whose counted requests these were ``served``."""
    num_requests = len(served) + num_rejected
    generates = service.request_kind == "generate"
    return ServiceMetrics(
        service=service.name,
        target=service.attainment,
        num_requests=num_requests,
        num_rejected=num_rejected,
        num_within=int(outcome.within[served].sum()),
        rate_rps=num_requests / records.measured_s,
        latency=latency_of(outcome.latency_s[served]),
        ttft=latency_of(_ttft_s(records, served)) if generates else None,
        tpot=_pace_of(records, served) if generates else None,
        itl=_token_intervals(records, service) if generates else None,
        mean_batch=float(records.batch[served].mean()) if len(served) else float("nan"),
    )


def latencies_of(records: Records, served: NDArray[np.intp]) -> tuple[Latency, Latency, Latency]:
    """End-to-end latency, time to first token and time per output token of these requests, all served."""
    latency, ttft = latency_of(_latency_s(records, served)), latency_of(_ttft_s(records, served))
    return latency, ttft, _pace_of(records, served)


def _latency_s(records: Records, requests: _Requests) -> Floats:
    """End-to-end latency; NaN where rejected, as the times below."""
    return records.completion_s[requests] - records.arrival_s[requests]


def _ttft_s(records: Records, requests: _Requests) -> Floats:
    """Time to first token."""
    return records.first_token_s[requests] - records.arrival_s[requests]


def _tpot_s(records: Records, requests: _Requests) -> Floats:
    """Time per output token after the first, if there is one."""
    decoding_s = records.completion_s[requests] - records.first_token_s[requests]
    return np.asarray(decoding_s / np.maximum(records.output_tokens[requests] - 1, 1))


def _pace_of(records: Records, served: NDArray[np.intp]) -> Latency:
    """Time per output token of those that have several."""
    return latency_of(_tpot_s(records, served[records.output_tokens[served] > 1]))


def _token_intervals(records: Records, service: ResolvedService) -> Latency | None:
    """Mean and percentiles of the intervals between the tokens of a service; None where not counted."""
    if records.token_intervals is None:
        return None
    counts = records.token_intervals[records.services.index(service.name)]
    number = float(counts[:-1].sum())
    if number == 0.0:
        return latency_of(np.empty(0))
    return Latency(float(counts[-1]) / number, *map(float, quantiles_s(counts, _QUANTILES)))


def latency_of(seconds: Floats) -> Latency:
    """Mean and percentiles of times, seconds."""
    if len(seconds) == 0:
        return Latency(*[float("nan")] * 6)
    return Latency(float(seconds.mean()), *map(float, _quantiles(np.sort(seconds))))


def _quantiles(ascending: Floats) -> Floats:
    """Quantiles as `numpy.quantile` has them, whose partitions take four times as long as numpy's sort."""
    places = np.array(_QUANTILES) * (len(ascending) - 1)
    below = places.astype(np.int64)
    low, high = ascending[below], ascending[np.minimum(below + 1, len(ascending) - 1)]
    part = places - below
    return np.where(part < 0.5, low + (high - low) * part, high - (high - low) * (1.0 - part))
