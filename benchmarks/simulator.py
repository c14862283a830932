"""Speed of the simulator: requests a second, and how much faster than the slow one of the tests.

Run ``python -m benchmarks.simulator`` in the repository. Code is compiled before the clock starts, and each
figure is the best of five. ``--conversations`` names the CSV of the Azure conversation trace, of its two
rows; ``--plot`` draws speed and memory against the length of the trace instead.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from benchmarks.simulator_cases import (
    Case,
    conversations_case,
    forward_case,
    pipelines_case,
    sjf_case,
)
from muplan.serving import foretold, simulator
from muplan.serving.metrics import measure
from muplan.serving.simulator import Simulator, simulate
from muplan.traces.generate import generate_trace
from muplan.workload import Controller, Routing, Serving
from tests.reference_forward import ReferenceForward

REPETITIONS = 5
MILLION = 1_000_000
CONVERSATIONS = Path("../shared/data/traces/azure_llm_2023_conv.csv")
LENGTHS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
_GROWN = """
import resource, sys, time
import numpy as np
from benchmarks.simulator_cases import {case} as make
from muplan.serving.simulator import Simulator
problem, deployment, _ = make(1_000)
simulator, rng = Simulator(problem, deployment), np.random.default_rng(0)
simulator.run(_, rng=rng, num_samples=300)
_, _, trace = make({length})
begin_s, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
simulator.run(trace, rng=rng, num_samples=300)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.perf_counter() - begin_s, before * 1024, after * 1024)
"""


def best_s(work: Callable[[], object]) -> float:
    """The least of several times, after one that does not count."""
    work()
    times = []
    for _ in range(REPETITIONS):
        begin_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin_s)
    return min(times)


class Kernels:
    """While it is entered, the seconds that the compiled kernels take are summed up."""

    PLACES = ((simulator, "serve_forward"), (simulator, "serve_generate"), (foretold, "serve_foretold"))

    def __enter__(self) -> Self:
        self.taken_s = 0.0
        self._own = [getattr(module, name) for module, name in self.PLACES]
        for (module, name), kernel in zip(self.PLACES, self._own, strict=True):
            setattr(module, name, partial(self._time, kernel))
        return self

    def __exit__(self, *_: object) -> None:
        for (module, name), kernel in zip(self.PLACES, self._own, strict=True):
            setattr(module, name, kernel)

    def _time(self, kernel: Callable[..., None], *arguments: object) -> None:
        begin_s = time.perf_counter()
        kernel(*arguments)
        self.taken_s += time.perf_counter() - begin_s


def speeds_rps(case: Case) -> tuple[float, float]:
    """Simulated requests for each second of the kernel, and of `simulate`, its tables included."""
    problem, deployment, trace = case
    kernels_s: list[float] = []

    def work() -> None:
        with Kernels() as kernels:
            simulate(problem, deployment, trace, rng=np.random.default_rng(0))
        kernels_s.append(kernels.taken_s)

    whole_s = best_s(work)
    return len(trace) / min(kernels_s), len(trace) / whole_s


def whole_rps(case: Case) -> float:
    """Requests for each second from drawing the trace to its metrics."""
    problem, deployment, trace = case
    deployed = Simulator(problem, deployment)
    numbers: list[int] = []

    def whole() -> None:
        rng = np.random.default_rng(0)
        drawn = generate_trace(problem.services, duration_s=trace.duration_s, rng=rng)
        numbers.append(len(drawn))
        measure(deployed.run(drawn, rng=rng), problem)

    seconds = best_s(whole)
    return numbers[-1] / seconds


def reference_rps(case: Case) -> float:
    """The same of the slow simulator."""
    problem, deployment, trace = case
    begin_s = time.perf_counter()
    ReferenceForward(problem, deployment, trace, Controller()).run()
    return len(trace) / (time.perf_counter() - begin_s)


def draw_growth(path: Path) -> None:
    """Plot speed and peak memory of runs of 10³ to 10⁷ requests, each in a process of its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for case, label in (
        ("pipelines_case", "in the order of arrival"),
        ("sjf_case", "shortest job first, batches"),
    ):
        seconds, memory = [], []
        for length in LENGTHS:
            script = _GROWN.format(case=case, length=length)
            output = subprocess.run(  # noqa: S603 - the script above
                [sys.executable, "-c", script], check=True, capture_output=True, text=True
            )
            taken_s, before, after = map(float, output.stdout.split())
            seconds.append(taken_s)
            memory.append(after / 1e9)
            sys.stderr.write(
                f"{case} {length:,}: {taken_s:.3f} s, {length / taken_s:,.0f}/s, {after / 1e9:.2f} GB,"
                f" {(after - before) / length:.0f} bytes a request beyond the trace\n"
            )
        axes[0].loglog(LENGTHS, seconds, marker="o", label=label)
        axes[1].loglog(LENGTHS, memory, marker="o", label=label)
    axes[0].set(xlabel="requests", ylabel="seconds")
    axes[1].set(xlabel="requests", ylabel="peak memory of the process, GB")
    axes[0].legend(fontsize="small")
    for one in axes:
        one.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=Path, default=CONVERSATIONS)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.plot is not None:
        draw_growth(options.plot)
        return
    miad = Serving(controller=Controller(policy="miad"))
    rows: list[tuple[str, Callable[[], Case]]] = [
        ("forward, 1 group, 1 service", lambda: forward_case(1, 1, 1, MILLION)),
        ("forward, 4 groups, 1 service", lambda: forward_case(4, 1, 1, MILLION)),
        ("forward, 4 groups, 1 service, MIAD", lambda: forward_case(4, 1, 1, MILLION, miad)),
        ("forward, 24 groups, 12 services, 3 on each", lambda: forward_case(24, 12, 3, MILLION)),
        ("forward, 24 groups, 24 services, all on each", lambda: forward_case(24, 24, 24, MILLION // 5)),
        ("forward, 16 pipelines of 4 stages, AlpaServe's rules", lambda: pipelines_case(MILLION)),
        ("forward, 16 pipelines of 4 stages, SJF, batches up to 8", lambda: sjf_case(MILLION)),
    ]
    if options.conversations.exists():
        for routing in (Routing.SHORTEST_EXPECTED_COMPLETION, Routing.ROUND_ROBIN):
            conversations = partial(conversations_case, options.conversations, MILLION, routing)
            rows.append((f"generate, conversations on 16 replicas, {routing}", conversations))
    print("| case | requests/s in the kernel | in all |")
    print("|---|---:|---:|")
    for name, make in rows:
        kernel_rps, all_rps = speeds_rps(make())
        print(f"| {name} | {kernel_rps:,.0f} | {all_rps:,.0f} |", flush=True)
    print(
        f"\nFrom drawing to metrics, AlpaServe's rules: {whole_rps(pipelines_case(MILLION)):,.0f} requests/s"
    )
    ratio = speeds_rps(forward_case(4, 1, 1, 200_000))[1] / reference_rps(forward_case(4, 1, 1, 2_000))
    print(f"Over the slow simulator of the tests (4 groups): {ratio:,.0f}×")


if __name__ == "__main__":
    main()
