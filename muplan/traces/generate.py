"""Draw traces from the demands of services: arrival processes, or recorded traces replayed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from muplan.errors import InputError
from muplan.traces.arrivals import draw_arrivals
from muplan.traces.lengths import LengthDistribution
from muplan.traces.processes import ArrivalProcess, Gamma
from muplan.traces.trace import Trace

Floats = NDArray[np.float64]
Tokens = NDArray[np.int32]

MAX_REQUESTS = 1e8
"""Requests of one service that are drawn or simulated; more would not fit the machine's memory."""


class RequestSource(Protocol):
    """What `generate_trace` must know of a service."""

    @property
    def name(self) -> str:
        """Name of the service."""

    @property
    def request_kind(self) -> str:
        """``forward`` or ``generate``."""

    @property
    def rate_rps(self) -> float:
        """Mean arrivals per second."""

    @property
    def cv(self) -> float:
        """Coefficient of variation of the inter-arrival times."""

    @property
    def process(self) -> ArrivalProcess | None:
        """How requests come; None where ``rate_rps`` and ``cv`` say it (Gamma intervals), or a trace."""

    @property
    def input_tokens(self) -> float:
        """Tokens of every forward request."""

    @property
    def lengths(self) -> LengthDistribution | None:
        """Lengths of generate requests; None where a trace has them."""

    @property
    def trace(self) -> Trace | None:
        """The recorded trace to replay, where there is one."""


class Purpose(StrEnum):
    """What a stream of random numbers is for; streams of different purposes share nothing."""

    TRAINING = "training"  # the planner searches and tightens on these
    JUDGING = "judging"  # predictions come from these, which no search has seen
    VERIFYING = "verifying"  # a saved plan is checked on these
    EXECUTING = "executing"  # a run draws its requests from these


def trace_rng(seed: int, replication: int, purpose: Purpose | str = Purpose.JUDGING) -> np.random.Generator:
    """Return the generator of one replication's trace.

    Streams are independent for every seed, purpose and replication, and the same on every machine.
    """
    spawn_key = (list(Purpose).index(Purpose(purpose)), replication)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=spawn_key))


def generate_trace(
    services: Sequence[RequestSource], *, duration_s: float, rng: np.random.Generator
) -> Trace:
    """Draw the requests of all services over a period.

    An arrival process is drawn from a random moment of it on. A service with a recorded trace replays
    it from a random moment, in a circle, so that its bursts stay as they were while replications
    differ. Every service draws from streams of its own, found by its name: adding, removing or
    reordering services leaves the requests of the others as they were, and another rate stretches the
    same arrivals (common random numbers).

    Parameters
    ----------
    services
        The services; forward requests have all the service's ``input_tokens``.
    duration_s
        Length of the period, seconds; arrivals lie in [0, duration_s).
    rng
        Where the randomness comes from, as a rule `trace_rng`.
    """
    base = int(rng.integers(2**63))
    columns = [_service_requests(service, duration_s, base) for service in services]
    arrival_s = np.concatenate([np.empty(0), *(arrivals for arrivals, _, _ in columns)])
    order = np.argsort(arrival_s, kind="stable")
    index = np.repeat(np.arange(len(columns), dtype=np.int32), [len(arrivals) for arrivals, _, _ in columns])
    no_tokens = np.empty(0, dtype=np.int32)
    return Trace(
        services=tuple(service.name for service in services),
        arrival_s=arrival_s[order],
        service=index[order],
        input_tokens=np.concatenate([no_tokens, *(inputs for _, inputs, _ in columns)])[order],
        output_tokens=np.concatenate([no_tokens, *(outputs for _, _, outputs in columns)])[order],
        duration_s=duration_s,
    )


def draw_trace(
    process: ArrivalProcess,
    *,
    service: str,
    lengths: LengthDistribution | int,
    duration_s: float,
    rng: np.random.Generator,
    phase_s: float | None = None,
) -> Trace:
    """Draw the requests of one service from an arrival process.

    Parameters
    ----------
    service
        Its name.
    lengths
        Of generate requests; or the tokens of every forward request.
    duration_s
        Length of the period, seconds.
    phase_s
        Where in the lap of a piecewise rate the period begins, seconds; random where None.

    Raises
    ------
    InputError
        More than 10⁸ requests are expected.
    """
    expected = process.rate_rps * duration_s
    if expected > MAX_REQUESTS:
        raise InputError(
            f"{process.rate_rps:g} requests/s over {duration_s:g} s are {expected:.3g} requests;"
            f" at most {MAX_REQUESTS:.0e} are drawn.",
            "Draw a shorter period, or a lower rate.",
        )
    arrival_s = draw_arrivals(process, duration_s=duration_s, rng=rng, phase_s=phase_s)
    count = len(arrival_s)
    if isinstance(lengths, int):
        inputs, outputs = np.full(count, lengths, dtype=np.int32), np.zeros(count, dtype=np.int32)
    else:
        inputs, outputs = lengths.sample(count, rng)
    return Trace(
        services=(service,),
        arrival_s=arrival_s,
        service=np.zeros(count, dtype=np.int32),
        input_tokens=inputs,
        output_tokens=outputs,
        duration_s=duration_s,
    )


def _service_requests(service: RequestSource, duration_s: float, base: int) -> tuple[Floats, Tokens, Tokens]:
    """Arrival times, input and output tokens of one service."""
    key = int.from_bytes(hashlib.sha256(service.name.encode()).digest()[:8], "big")
    arrival_rng, length_rng = map(np.random.default_rng, np.random.SeedSequence([base, key]).spawn(2))
    if service.trace is not None:
        arrival_s, request = _replay(service.trace, duration_s, arrival_rng)
        if service.request_kind == "generate":
            return arrival_s, service.trace.input_tokens[request], service.trace.output_tokens[request]
    else:
        process = service.process or Gamma(rate_rps=service.rate_rps, cv=service.cv)
        arrival_s = draw_arrivals(process, duration_s=duration_s, rng=arrival_rng)
        if service.lengths is not None:
            return arrival_s, *service.lengths.sample(len(arrival_s), length_rng)
    inputs = np.full(len(arrival_s), round(service.input_tokens), dtype=np.int32)
    return arrival_s, inputs, np.zeros(len(arrival_s), dtype=np.int32)


def _replay(trace: Trace, duration_s: float, rng: np.random.Generator) -> tuple[Floats, NDArray[np.intp]]:
    """Replay recorded requests from a random moment on, in a circle; their times and indices."""
    start_s = rng.random() * trace.duration_s
    num_laps = int(np.ceil((start_s + duration_s) / trace.duration_s))
    laps_s = trace.duration_s * np.arange(num_laps)
    arrival_s = (laps_s[:, None] + trace.arrival_s[None, :]).ravel() - start_s
    inside = (arrival_s >= 0.0) & (arrival_s < duration_s)
    return arrival_s[inside], np.tile(np.arange(len(trace)), num_laps)[inside]
