"""Plans for demands whose rate changes: what the window of their dispersion does to them.

``python -m validation.burst_windows`` prints the table of docs/validation.md; it takes some minutes.
"""

from __future__ import annotations

from pathlib import Path

from muplan.planning.solve import Planned, solve
from muplan.problem.loading import load_problem
from muplan.problem.problem import Problem
from muplan.serde import parse_document
from muplan.serving.prediction import predict
from muplan.traces import processes
from muplan.traces.generate import Purpose
from muplan.workload import Workload

WORKLOAD = """\
kind: workload
schema_version: 1
name: bursts-and-day
fleet:
  pools:
    - {name: v100, device: v100-sxm2-32gb, num_gpus: 16}
services:
  - name: bursts
    model: bert-2.6b
    tokens: 512
    slo: {scale: 5}
    demand: {process: {kind: markov-modulated, rates_rps: [8, 30], sojourns_s: [30, 10]}}
  - name: day
    model: bert-1.3b
    tokens: 512
    slo: {scale: 5}
    demand: {process: {kind: piecewise, rates_rps: [10, 20, 40, 25], interval_s: 120, noise_cv: 0.2}}
  - name: chat
    model: llama-2-7b
    lengths: azure-conversation
    slo: {ttft_s: 2.0, tpot_s: 0.15}
    demand: {process: {kind: markov-modulated, rates_rps: [1, 4], sojourns_s: [60, 20]}}
"""
WINDOWS_S = (0.2, 1.0, 10.0)


def main() -> None:
    """Print the table."""
    print("| window s | CV of bursts, day, chat | found by | W | in time, worst service | on fresh traces |")
    print("|---:|---|---|---:|---:|---:|")
    for window_s in WINDOWS_S:
        print(row(window_s), flush=True)


def row(window_s: float) -> str:
    """Plan with one window, and simulate the plan on fresh traces."""
    problem = with_window(window_s)
    result = solve(problem, with_baselines=False)
    variations = ", ".join(f"{service.cv:.2f}" for service in problem.services)
    if not isinstance(result, Planned):
        return f"| {window_s:g} | {variations} | – | – | – | – |"
    fresh = predict(problem, result.deployment, seed=1, purpose=Purpose.VERIFYING)
    promised, kept = (
        min(service.attainment.mean for service in prediction.services)
        for prediction in (result.prediction, fresh)
    )
    return (
        f"| {window_s:g} | {variations} | {result.solution.solver} | {result.prediction.power_w.mean:.0f}"
        f" | {promised:.2%} | {kept:.2%} |"
    )


def with_window(window_s: float) -> Problem:
    """The workload, its processes' variations told by dispersions over a window."""
    stated_s, processes.PLANNING_WINDOW_S = processes.PLANNING_WINDOW_S, window_s
    try:
        return load_problem(parse_document(WORKLOAD, Workload, file="bursts-and-day"), directory=Path())
    finally:
        processes.PLANNING_WINDOW_S = stated_s


if __name__ == "__main__":
    main()
