"""The simulator against closed forms of queueing theory: prints the tables of docs/validation.md.

Run ``python -m validation.queueing`` in the repository. The cases are those of
``tests/test_queueing_theory.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from muplan.plan import Interval
from muplan.workload import QueueOrder, Serving
from tests import serving_cases as cases
from tests import test_queueing_theory as theory

replicate = partial(theory.replicate, duration_s=1500.0, warm_up_s=100.0)


def single_server() -> list[tuple[str, float, Interval]]:
    """M/D/1 at four loads: mean wait, seconds."""
    rows = []
    for load in (0.3, 0.5, 0.7, 0.9):
        service = theory.deterministic("a", 0.1, load / 0.1)
        result = theory.replicate(
            [service], theory.single_group("a"), theory.mean_wait_s(), duration_s=4000, warm_up_s=400
        )
        rows.append((f"M/D/1, ρ = {load}", load * 0.1 / (2 * (1 - load)), result))
    return rows


def two_services() -> list[tuple[str, float, Interval]]:
    """Two services on a group, ρ = 0.3 + 0.4: Pollaczek–Khinchine and Cobham."""
    services = [theory.deterministic("short", 0.05, 6.0), theory.deterministic("long", 0.4, 1.0)]
    residual_s = (6.0 * 0.05**2 + 1.0 * 0.4**2) / 2
    forms = {
        QueueOrder.FCFS: (residual_s / 0.3, residual_s / 0.3),
        QueueOrder.SJF: (residual_s / 0.7, residual_s / (0.7 * 0.3)),
    }
    rows = []
    for order, expected in forms.items():
        deployment = theory.single_group("short", "long", serving=Serving(queue_order=order, wait_cap="none"))
        for number, name in enumerate(("short", "long")):
            statistic = theory.mean_wait_s(number)
            result = replicate(services, deployment, statistic)
            rows.append((f"M/G/1, {order}, {name} requests", expected[number], result))
    return rows


def several_servers() -> list[tuple[str, float, Interval]]:
    """M/D/3 by routing to the shortest expected completion."""
    service = theory.deterministic("a", 0.1, 24.0)
    deployment = cases.deployment([cases.group(f"g{index}", [index], ["a"]) for index in range(3)])
    result = replicate([service], deployment, theory.mean_wait_s())
    return [("M/D/3, ρ = 0.8 (Crommelin)", theory.m_d_c_mean_wait_s(24.0, 0.1, 3), result)]


def generated() -> list[tuple[str, float, Interval]]:
    """Replies of geometric length, one at a time: M/M/1 in the limit, M/G/1 with few tokens."""
    deployment = cases.deployment([cases.group("g", [0], ["chat"])])
    many = theory.exponential_service(1000.0, 1e-4, 7.0)
    few = theory.exponential_service(4.0, 0.05, 3.5)
    wait_s = theory.mean_wait_s()
    return [
        (
            "M/M/1, ρ = 0.7 (1,000 tokens)",
            0.7 * 0.1 / 0.3,
            replicate([many], deployment, wait_s, mean_tokens=1000.0),
        ),
        (
            "M/G/1, geometric, 4 tokens, ρ = 0.7",
            3.5 * 0.05**2 * (2 - 0.25) / 0.25**2 / (2 * 0.3),
            replicate([few], deployment, wait_s, mean_tokens=4.0),
        ),
    ]


def coverage(num_intervals: int = 1000) -> str:
    """How often intervals over 8 replications contain the closed form of M/D/1 at ρ = 0.6."""
    service, deployment = theory.deterministic("a", 0.1, 6.0), theory.single_group("a")
    expected = 0.6 * 0.1 / (2 * 0.4)
    covered = [
        theory.contains(
            theory.replicate(
                [service],
                deployment,
                theory.mean_wait_s(),
                duration_s=220,
                warm_up_s=20,
                replications=8,
                seed=seed,
            ),
            expected,
        )
        for seed in range(num_intervals)
    ]
    share = float(np.mean(covered))
    error = math.sqrt(share * (1 - share) / num_intervals)
    return f"{share:.1%} ± {error:.1%} of {num_intervals:,} intervals contain it (95 % expected)."


def main() -> None:
    """Print the tables."""
    parts: tuple[Callable[[], list[tuple[str, float, Interval]]], ...] = (
        single_server,
        two_services,
        several_servers,
        generated,
    )
    print("| queue | closed form, ms | simulated mean, ms | 95 % interval, ms |")
    print("|---|---:|---:|---:|")
    for part in parts:
        for name, expected, result in part():
            low, high = result.low * 1e3, result.high * 1e3
            print(f"| {name} | {expected * 1e3:.2f} | {result.mean * 1e3:.2f} | {low:.2f}–{high:.2f} |")
    print()
    print(coverage())


if __name__ == "__main__":
    main()
