"""Metrics of a simulation: attainment, latencies, power, energy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.problem.problem import Problem, ResolvedService
from muplan.serving.records import Records
from muplan.serving.token_intervals import quantiles_s

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


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


def measure(records: Records, problem: Problem) -> Metrics:
    """Compute the metrics of a simulation.

    Counted are the requests that arrived in the measured period, whenever they ended; energy is that
    of the measured period.
    """
    within = within_limits(records, problem)
    counted = np.flatnonzero(records.counted)
    rejected = records.rejected
    by_service = counted[np.argsort(records.service[counted], kind="stable")]
    ends = np.searchsorted(records.service[by_service], np.arange(len(problem.services) + 1))
    services = tuple(
        _service_metrics(records, service, by_service[ends[number] : ends[number + 1]], within, rejected)
        for number, service in enumerate(problem.services)
    )
    generates = np.array([service.request_kind == "generate" for service in problem.services])
    answered = counted[generates[records.service[counted]] & ~rejected[counted]]
    num_tokens = int(records.output_tokens[answered].sum())
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
    number = records.service
    latency_limit_s = np.array([limit.latency_s for limit in limits])[number]
    ttft_limit_s = np.array([limit.ttft_s for limit in limits])[number]
    tpot_limit_s = np.array([limit.tpot_s for limit in limits])[number]
    arrival_s = records.arrival_s
    within = records.completion_s - arrival_s <= latency_limit_s  # NaN, where rejected, is not
    within &= records.first_token_s - arrival_s <= ttft_limit_s
    later_tokens = np.maximum(records.output_tokens - 1, 1)
    within &= (records.completion_s - records.first_token_s) / later_tokens <= tpot_limit_s
    return np.asarray(within)


def _service_metrics(
    records: Records, service: ResolvedService, mine: NDArray[np.intp], within: Flags, rejected: Flags
) -> ServiceMetrics:
    """The metrics of a service, whose counted requests are ``mine``."""
    served = mine[~rejected[mine]]
    latency, ttft, tpot = latencies_of(records, served)
    generates = service.request_kind == "generate"
    return ServiceMetrics(
        service=service.name,
        target=service.attainment,
        num_requests=len(mine),
        num_rejected=len(mine) - len(served),
        num_within=int(within[mine].sum()),
        rate_rps=len(mine) / records.measured_s,
        latency=latency,
        ttft=ttft if generates else None,
        tpot=tpot if generates else None,
        itl=_token_intervals(records, service) if generates else None,
        mean_batch=float(records.batch[served].mean()) if len(served) else float("nan"),
    )


def latencies_of(records: Records, served: NDArray[np.intp]) -> tuple[Latency, Latency, Latency]:
    """End-to-end latency, time to first token and time per output token of these requests, all served."""
    arrival_s, first_s = records.arrival_s[served], records.first_token_s[served]
    completion_s, tokens = records.completion_s[served], records.output_tokens[served]
    several = tokens > 1
    per_token_s = (completion_s - first_s)[several] / (tokens[several] - 1)
    return latency_of(completion_s - arrival_s), latency_of(first_s - arrival_s), latency_of(per_token_s)


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
    return Latency(float(seconds.mean()), *map(float, np.quantile(seconds, _QUANTILES)))
