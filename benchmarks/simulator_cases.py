"""The cases that the simulator is timed on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from muplan.plan import Deployment
from muplan.problem.problem import Problem, ResolvedService
from muplan.traces.formats.azure import import_azure
from muplan.traces.operations import multiply
from muplan.traces.trace import Trace
from muplan.workload import QueueOrder, Rejection, Routing, Serving
from tests import serving_cases as cases

ALPASERVE = Serving(
    routing=Routing.LEAST_LAST_STAGE, rejection=Rejection.AT_ARRIVAL, overhead_s=0.011, stage_overhead=0.009
)
"""First come, first served, batches of one, to the replica whose last stage is free first, no late ones."""
PIPELINES, SERVICES, STAGES = 16, 24, 4
HOSTED, RATE_RPS = 4, 90.0
"""Services on each pipeline, and requests per second for each: about 90 % of what it serves."""
REPLICAS, COPIES = 16, 18
"""Replicas of the conversations' model, and copies of the trace at a time."""

Case = tuple[Problem, Deployment, Trace]


def poisson(services: Sequence[ResolvedService], num_requests: int) -> Trace:
    """Poisson arrivals at the services' total rate."""
    rng = np.random.default_rng(0)
    rate_rps = sum(service.rate_rps for service in services)
    arrivals = np.cumsum(rng.exponential(1 / rate_rps, num_requests))
    kinds = rng.integers(0, len(services), num_requests)
    return cases.trace(list(services), arrivals, kinds, duration_s=float(arrivals[-1]))


def forward_case(
    num_groups: int, num_services: int, hosted: int, num_requests: int, serving: Serving | None = None
) -> Case:
    """Groups of one GPU that each host ``hosted`` of the services in turn, at about 70 requests/s each.

    A request takes 10 ms, in batches up to eight.
    """
    rate_rps = 70.0 * num_groups / num_services
    services = [
        cases.forward_service(
            f"s{number}", lambda _, batch: 0.007 + 0.003 * batch, max_batch=8, limit_s=0.1, rate_rps=rate_rps
        )
        for number in range(num_services)
    ]
    groups = [
        cases.group(
            f"g{number}",
            [number],
            [services[(number + turn) % num_services].name for turn in range(hosted)],
            max_batch=8,
        )
        for number in range(num_groups)
    ]
    problem = cases.problem(services, num_gpus=num_groups)
    return problem, cases.deployment(groups, serving), poisson(services, num_requests)


def pipelines_case(num_requests: int, serving: Serving = ALPASERVE, *, max_batch: int = 1) -> Case:
    """16 pipelines of four stages of 10 ms (for a batch of one), four of 24 services on each."""
    rate_rps = PIPELINES * RATE_RPS * (1.0 if max_batch == 1 else 2.0) / SERVICES
    services = [
        cases.forward_service(
            f"s{number}",
            lambda _, batch: 0.007 + 0.003 * batch,
            num_clusters=STAGES,
            max_batch=max_batch,
            limit_s=0.2,
            rate_rps=rate_rps,
        )
        for number in range(SERVICES)
    ]
    groups = [
        cases.group(
            f"g{group}",
            range(STAGES * group, STAGES * (group + 1)),
            [f"s{(3 * group + turn) % SERVICES}" for turn in range(HOSTED)],
            clusters=[[(stage, stage + 1)] for stage in range(STAGES)],
            max_batch=max_batch,
        )
        for group in range(PIPELINES)
    ]
    problem = cases.problem(services, num_gpus=PIPELINES * STAGES)
    return problem, cases.deployment(groups, serving), poisson(services, num_requests)


def sjf_case(num_requests: int) -> Case:
    """The pipelines with batches up to eight, shortest job first, and twice the demand."""
    serving = Serving(queue_order=QueueOrder.SJF, routing=Routing.LEAST_LAST_STAGE)
    return pipelines_case(num_requests, serving, max_batch=8)


def chat_service(rate_rps: float) -> ResolvedService:
    """Batches up to 64, decoded in 12 to 27 ms; 25,000 prompt tokens a second; memory for 80,000."""
    return cases.generate_service(
        "chat",
        prefill=lambda _, batch, tokens: 0.005 + 4e-5 * batch * tokens,
        decode=lambda _, batch, context: 0.012 + 1e-4 * batch + 1e-7 * batch * context,
        max_batch=64,
        max_context=16384,
        mean_input=1155.0,
        mean_output=211.0,
        kv_tokens=80_000,
        rate_rps=rate_rps,
    )


def conversations_case(path: Path, num_requests: int, routing: Routing) -> Case:
    """The Azure conversation hour over 16 replicas, 18 copies at a time, as often as it takes."""
    hour = multiply(import_azure(path, "chat"), float(COPIES), np.random.default_rng(0))
    times = -(-num_requests // len(hour))
    arrivals = np.concatenate([hour.arrival_s + turn * hour.duration_s for turn in range(times)])[
        :num_requests
    ]
    service = chat_service(len(hour) / hour.duration_s)
    trace = cases.trace(
        [service],
        arrivals,
        np.zeros(num_requests),
        duration_s=float(arrivals[-1]) + 1.0,
        input_tokens=np.tile(hour.input_tokens, times)[:num_requests],
        output_tokens=np.tile(hour.output_tokens, times)[:num_requests],
    )
    groups = [cases.group(f"g{number}", [number], ["chat"], max_batch=64) for number in range(REPLICAS)]
    deployment = cases.deployment(groups, Serving(routing=routing))
    return cases.problem([service], num_gpus=REPLICAS), deployment, trace
