"""The problem: a workload resolved against its devices, profiles and length distributions.

Everything the planner, the simulator and the checks need stands here with units and without
look-ups left to do: absolute latency limits, rates, one profile for each service and pool.
`load_problem` makes it and reports everything that does not fit together at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from muplan.hardware.device import Device
from muplan.hardware.fleet import Pool
from muplan.profile import Profile
from muplan.traces.lengths import LengthDistribution
from muplan.traces.processes import ArrivalProcess
from muplan.traces.trace import Trace
from muplan.workload import Service, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Absolute latency limits of a service, seconds; infinite where a limit does not apply."""

    latency_s: float
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedService:
    """A service with everything about it looked up.

    ``input_tokens`` is the length of every forward request, or the mean prompt of a generate
    service; ``output_tokens`` the mean reply (0 for forward services).
    """

    spec: Service
    request_kind: str  # "forward" | "generate"
    profiles: Mapping[str, Profile]  # by pool name; of every pool that it may use
    limits: Limits
    rate_rps: float
    cv: float
    input_tokens: float
    output_tokens: float
    max_context: int  # longest prompt + reply that can occur, tokens (forward: input_tokens)
    lengths: LengthDistribution | None
    trace: Trace | None
    process: ArrivalProcess | None = None  # None: Gamma intervals with rate_rps and cv, or a trace

    @property
    def name(self) -> str:
        """Name of the service."""
        return self.spec.name

    @property
    def attainment(self) -> float:
        """Share of requests that must be within the limits."""
        return self.spec.slo.attainment

    def may_use_pool(self, pool: str) -> bool:
        """Whether a pool may host the service, and has a profile of it."""
        return self.spec.may_use_pool(pool) and pool in self.profiles

    def scaled(self, factor: float) -> ResolvedService:
        """The service with ``factor`` times the demand; a process or a recorded trace runs so much faster."""
        trace = None if self.trace is None else self.trace.faster(factor)
        process = None if self.process is None else self.process.faster(factor)
        cv = self.cv if process is None else process.cv
        return replace(self, rate_rps=self.rate_rps * factor, cv=cv, trace=trace, process=process)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A workload with its devices, and services resolved."""

    workload: Workload
    devices: Mapping[str, Device]  # by pool name
    services: tuple[ResolvedService, ...]
    _numbers: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = {service.name: number for number, service in enumerate(self.services)}
        object.__setattr__(self, "_numbers", numbers)

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The fleet's pools."""
        return self.workload.fleet.pools

    def pool(self, name: str) -> Pool:
        """The pool of that name."""
        return next(pool for pool in self.pools if pool.name == name)

    def clocks_mhz(self, pool: str) -> tuple[int, ...]:
        """Clocks that a plan may use on a pool: the device's usable ones, within the pool's limits."""
        allows = self.pool(pool).allows_clock
        return tuple(clock for clock in self.devices[pool].usable_clocks_mhz if allows(clock))

    def service(self, name: str) -> ResolvedService:
        """The service of that name."""
        return self.services[self._numbers[name]]

    def number_of(self, service: str) -> int:
        """The position of a service among all, by name."""
        return self._numbers[service]

    def scaled(self, factor: float) -> Problem:
        """The problem with ``factor`` times the demand of every service."""
        if factor == 1.0:
            return self
        return replace(self, services=tuple(service.scaled(factor) for service in self.services))
