"""Speed of the simulator: requests a second, and how much faster than the slow one of the tests.

Run ``python -m benchmarks.simulator`` in the repository. Traces are drawn and code is compiled before
the clock starts; the time is that of `simulate`, its tables included; the best of five.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from muplan.plan import Deployment
from muplan.problem.problem import Problem, ResolvedService
from muplan.serving.simulator import simulate
from muplan.traces.trace import Trace
from muplan.workload import Controller, Serving
from tests import serving_cases as cases
from tests.reference_forward import ReferenceForward

REPETITIONS = 5


def best_s(work: Callable[[], object]) -> float:
    """The least of several times, after one that does not count."""
    work()
    times = []
    for _ in range(REPETITIONS):
        begin_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin_s)
    return min(times)


def forward_services(count: int, rate_rps: float) -> list[ResolvedService]:
    """Services of 10 ms a request, in batches up to eight."""

    def seconds(_: int, batch: int) -> float:
        return 0.007 + 0.003 * batch

    return [
        cases.forward_service(f"s{number}", seconds, max_batch=8, limit_s=0.1, rate_rps=rate_rps)
        for number in range(count)
    ]


def poisson(services: list[ResolvedService], num_requests: int) -> Trace:
    """Poisson arrivals at the services' total rate."""
    rng = np.random.default_rng(0)
    rate_rps = sum(service.rate_rps for service in services)
    arrivals = np.cumsum(rng.exponential(1 / rate_rps, num_requests))
    kinds = rng.integers(0, len(services), num_requests)
    return cases.trace(services, arrivals, kinds, duration_s=float(arrivals[-1]))


def forward_case(
    num_groups: int, num_services: int, hosted: int, num_requests: int, serving: Serving | None = None
) -> tuple[Problem, Deployment, Trace]:
    """Groups that each host ``hosted`` of the services in turn, at about 70 requests a second each."""
    services = forward_services(num_services, 70.0 * num_groups / num_services)
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


def generate_case(num_requests: int) -> tuple[Problem, Deployment, Trace]:
    """Two groups of continuous batches up to 64, about 200 tokens a reply."""
    service = cases.generate_service(
        "chat",
        prefill=lambda _, batch, tokens: 0.005 + 5e-5 * batch * tokens,
        decode=lambda _, batch, context: 0.012 + 1e-4 * batch + 1e-7 * batch * context,
        max_batch=64,
        max_context=2048,
        mean_input=500.0,
        mean_output=200.0,
        kv_tokens=50_000,
        rate_rps=8.0,
    )
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1 / service.rate_rps, num_requests))
    trace = cases.trace(
        [service],
        arrivals,
        np.zeros(num_requests),
        duration_s=float(arrivals[-1]),
        input_tokens=np.clip(rng.exponential(500, num_requests), 1, 1500),
        output_tokens=np.clip(rng.geometric(1 / 200, num_requests), 1, 500),
    )
    groups = [cases.group(f"g{number}", [number], ["chat"], max_batch=64) for number in range(2)]
    return cases.problem([service], num_gpus=2), cases.deployment(groups), trace


def speed_rps(problem: Problem, deployment: Deployment, trace: Trace) -> float:
    """Simulated requests for each second of computing."""
    rng = np.random.default_rng(0)
    return len(trace) / best_s(lambda: simulate(problem, deployment, trace, rng=rng, num_samples=1))


def reference_rps(problem: Problem, deployment: Deployment, trace: Trace) -> float:
    """The same of the slow simulator."""
    begin_s = time.perf_counter()
    ReferenceForward(problem, deployment, trace, Controller()).run()
    return len(trace) / (time.perf_counter() - begin_s)


def main() -> None:
    """Print the table."""
    miad = Serving(controller=Controller(policy="miad"))
    rows = [
        ("forward, 1 group, 1 service", forward_case(1, 1, 1, 1_000_000)),
        ("forward, 4 groups, 1 service", forward_case(4, 1, 1, 1_000_000)),
        ("forward, 4 groups, 1 service, MIAD", forward_case(4, 1, 1, 1_000_000, miad)),
        ("forward, 24 groups, 12 services, 3 on each", forward_case(24, 12, 3, 1_000_000)),
        ("forward, 24 groups, 24 services, all on each", forward_case(24, 24, 24, 200_000)),
        ("generate, 2 groups, batches up to 64", generate_case(20_000)),
    ]
    print("| case | requests per second of computing |")
    print("|---|---:|")
    for name, case in rows:
        print(f"| {name} | {speed_rps(*case):,.0f} |")
    small = forward_case(4, 1, 1, 2_000)
    large = forward_case(4, 1, 1, 200_000)
    ratio = speed_rps(*large) / reference_rps(*small)
    print(f"\nOver the slow simulator of the tests (4 groups): {ratio:,.0f}×")


if __name__ == "__main__":
    main()
