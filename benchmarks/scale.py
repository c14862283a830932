"""How the exact solver grows with fleet and services: ``python -m benchmarks.scale``.

Workloads are drawn at random: services of the shipped forward models on V100-SXM2-32GB, rates that vary
threefold about their mean, limits of 4 to 12 times the batch-1 latency, arrivals of variation 1, 2 or 4;
scaled so that at maximum clock the demand keeps 45 % of the fleet busy.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from muplan.planning.search.tuning import first_guard, make_model
from muplan.planning.solvers.exact import solve_exact
from muplan.planning.solvers.solver import Progress
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.model import PlanningModel
from muplan.problem.loading import load_problem
from muplan.problem.problem import Problem, ResolvedService
from muplan.profile import Phase
from muplan.workload import Workload

MODELS = (
    "bert-base",
    "bert-large",
    "bert-1.3b",
    "bert-2.6b",
    "bert-6.7b",
    "vit-large",
    "resnet-50",
)
DEVICE = "v100-sxm2-32gb"
CASES = ((16, 24, 30.0), (64, 40, 30.0), (128, 96, 60.0), (1024, 256, 180.0))
"""GPUs, services, and seconds for the solver."""

_BUSY = 0.45


def random_workload(num_gpus: int, num_services: int, *, seed: int = 0) -> Workload:
    """A workload of given size; rates are those of one GPU's worth of work in all, to be scaled."""
    rng = np.random.default_rng(seed)
    services = tuple(
        {
            "name": f"service-{number}",
            "model": str(rng.choice(MODELS)),
            "slo": {"scale": round(rng.uniform(4, 12), 2)},
            "demand": {"rate_rps": 1.0, "cv": float(rng.choice([1.0, 2.0, 4.0]))},
        }
        for number in range(num_services)
    )
    fleet = {"pools": ({"name": "v100", "device": DEVICE, "num_gpus": num_gpus, "gpus_per_node": 8},)}
    return Workload.model_validate(
        {"kind": "workload", "schema_version": 1, "name": "random", "fleet": fleet, "services": services}
    )


def random_problem(num_gpus: int, num_services: int, *, seed: int = 0) -> Problem:
    """The workload resolved, its rates scaled to the fleet."""
    problem = load_problem(
        random_workload(num_gpus, num_services, seed=seed), directory=Path(), profiles=Path("profiles")
    )
    rng = np.random.default_rng([seed, 1])
    share = rng.uniform(0.5, 1.5, num_services)
    share *= _BUSY * num_gpus / share.sum()
    services = tuple(
        service_with_rate(service, part / service_seconds(service))
        for service, part in zip(problem.services, share, strict=True)
    )
    workload = problem.workload.model_copy(update={"services": tuple(item.spec for item in services)})
    return replace(problem, workload=workload, services=services)


def service_seconds(service: ResolvedService) -> float:
    """GPU seconds of one request at maximum clock, batch 1."""
    profile = service.profiles["v100"]
    latency_s = profile.latency_s(Phase.FORWARD, tensor_parallel=1, batch=1, tokens=service.input_tokens)
    return float(latency_s[profile.cluster_type_index, -1].sum())


def service_with_rate(service: ResolvedService, rate_rps: float) -> ResolvedService:
    """The service at another rate."""
    demand = service.spec.demand.model_copy(update={"rate_rps": rate_rps})
    return replace(service, rate_rps=rate_rps, spec=service.spec.model_copy(update={"demand": demand}))


def build_model(problem: Problem) -> tuple[PlanningModel, float]:
    """The stated model before any simulation, and the seconds it took to make."""
    begin = time.perf_counter()
    builder = CandidateBuilder(problem)
    model = make_model(problem, builder, first_guard(problem, builder))
    return model, time.perf_counter() - begin


def measure(num_gpus: int, num_services: int, time_limit_s: float, gap: float, *, verbose: bool) -> str:
    """One row of the table."""
    model, built_s = build_model(random_problem(num_gpus, num_services))
    begin = time.perf_counter()

    def report(progress: Progress) -> None:
        if verbose:
            sys.stderr.write(
                f"{time.perf_counter() - begin:7.1f} s  {progress.phase:18} {progress.incumbent:12.1f} W"
                f"  bound {progress.bound:12.1f} W  gap {progress.gap:.3%}\n"
            )

    solution = solve_exact(model, time_limit_s=time_limit_s, seed=0, gap=gap, report=report)
    elapsed_s = time.perf_counter() - begin
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"| {num_gpus:,} × {num_services} | {len(model.group_types):,} | {built_s:.1f} | {elapsed_s:.1f} |"
        f" {solution.objective:,.1f} | {solution.bound:,.1f} | {solution.gap:.2%} | {peak_gb:.2f} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=int, action="append", help="number of a case; all where absent")
    parser.add_argument("--gap", type=float, default=1e-4)
    parser.add_argument("--time-limit", type=float, help="in place of each case's own")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args(arguments)
    out = sys.stdout
    out.write("| GPUs × services | group types | built in s | solved in s | W | bound W | gap | peak GB |\n")
    out.write("|---|---:|---:|---:|---:|---:|---:|---:|\n")
    for number in options.case if options.case is not None else range(len(CASES)):
        num_gpus, num_services, limit_s = CASES[number]
        row = measure(
            num_gpus, num_services, options.time_limit or limit_s, options.gap, verbose=options.verbose
        )
        out.write(row + "\n")
        out.flush()


if __name__ == "__main__":
    main()
