"""How planning grows with fleet and services: ``python -m benchmarks.scale``.

Workloads are drawn at random: services of the shipped forward models on V100-SXM2-32GB, rates that vary
threefold about their mean, limits of 4 to 12 times the batch-1 latency, arrivals of variation 1, 2 or 4;
scaled so that at maximum clock the demand keeps 45 % of the fleet busy. The first table is the stated
model alone; with ``--whole``, the second is a whole `solve`, simulation in the loop included, and the check
of its plan.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from muplan.planning.document import make_plan
from muplan.planning.search.progress import Step
from muplan.planning.search.tuning import first_guard, make_model
from muplan.planning.solve import Planned, solve
from muplan.planning.solvers.exact import solve_exact
from muplan.planning.solvers.solver import Progress
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.model import PlanningModel
from muplan.problem.loading import load_problem, read_problem
from muplan.problem.problem import Problem, ResolvedService
from muplan.profile import Phase
from muplan.serde import write_document
from muplan.verify.check import check_plan
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
WHOLE = (4096, 512, 30.0)
"""GPUs and services planned, deployed and verified in full, and seconds for each run of the solver."""
GROWTH = ((16, 24), (32, 24), (64, 24), (128, 24), (256, 24), (16, 12), (64, 48), (128, 96), (256, 192))
"""GPUs and services of the plot, all solved to one gap."""

SIMULATION = {"duration_s": 12.0, "warm_up_s": 2.0, "replications": 3}
"""Short, as a large fleet takes hundreds of thousands of requests a second."""

_BUSY = 0.45
_PLOTTED_GAP = 1e-2


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
        {
            "kind": "workload",
            "schema_version": 1,
            "name": f"random-{num_gpus}-{num_services}",
            "fleet": fleet,
            "services": services,
            "simulation": SIMULATION,
        }
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
    return (
        f"| {num_gpus:,} × {num_services} | {len(model.group_types):,} | {built_s:.1f} | {elapsed_s:.1f} |"
        f" {solution.objective:,.1f} | {solution.bound:,.1f} | {solution.gap:.2%} | {_peak_gb():.2f} |"
    )


def measure_whole(num_gpus: int, num_services: int, time_limit_s: float, *, verbose: bool) -> str:
    """A whole `solve` without baselines, its plan written, read again and verified: a row of the table."""
    begin = time.perf_counter()

    def report(step: Step) -> None:
        if verbose:
            elapsed_s = time.perf_counter() - begin
            sys.stderr.write(f"{elapsed_s:7.1f} s  {step.phase} {step.number or ''} {step.solver or ''}\n")

    problem = random_problem(num_gpus, num_services)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "workload.json"
        write_document(problem.workload, path)
        problem = read_problem(path, profiles=Path("profiles"))
        result = solve(problem, with_baselines=False, time_limit_s=time_limit_s, report=report)
        solved_s = time.perf_counter() - begin
        if not isinstance(result, Planned):
            return f"| {num_gpus:,} × {num_services} | {solved_s:.0f} | refused: {result.status} ||||||"
        plan_path = Path(folder) / "plan.json"
        write_document(make_plan(problem, result, workload=path, folder=Path(folder)), plan_path)
        plan_mb = plan_path.stat().st_size / 1e6
        verdict = check_plan(plan_path, profiles=Path("profiles"))
    checked_s = time.perf_counter() - begin - solved_s
    faults = {item.constraint for item in verdict.violations}
    return (
        f"| {num_gpus:,} × {num_services} | {solved_s:.0f} | {result.solution.solver} |"
        f" {result.solution.achieved[0].gap:.2%} | {result.prediction.power_w.mean:,.0f} | {plan_mb:.1f} |"
        f" {checked_s:.0f} | {'holds' if verdict.holds else ', '.join(sorted(faults))} | {_peak_gb():.2f} |"
    )


def draw_growth(path: Path, cases: Sequence[tuple[int, int]] = GROWTH) -> None:
    """Plot the seconds to build and solve the stated model to a gap of 1 % against GPUs, by services."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    seconds: dict[tuple[int, int], float] = {}
    for num_gpus, num_services in cases:
        problem = random_problem(num_gpus, num_services)
        begin = time.perf_counter()
        model, _ = build_model(problem)
        solve_exact(model, time_limit_s=300.0, seed=0, gap=_PLOTTED_GAP)
        seconds[num_gpus, num_services] = time.perf_counter() - begin
        sys.stderr.write(f"{num_gpus} × {num_services}: {seconds[num_gpus, num_services]:.1f} s\n")
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    fixed = [(gpus, value) for (gpus, services), value in seconds.items() if services == 24]
    grown = [(gpus, value) for (gpus, services), value in seconds.items() if 4 * services == 3 * gpus]
    axes.plot(*zip(*sorted(fixed), strict=True), marker="o", label="24 services")
    axes.plot(*zip(*sorted(grown), strict=True), marker="s", label="3 services for every 4 GPUs")
    axes.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="seconds to a gap of 1 %")
    for axis, ticks in ((axes.xaxis, (16, 32, 64, 128, 256)), (axes.yaxis, (1, 2, 5, 10, 20, 50, 100))):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=int, action="append", help="number of a case; all where absent")
    parser.add_argument("--gap", type=float, default=1e-4)
    parser.add_argument("--time-limit", type=float, help="in place of each case's own")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--whole", action="store_true", help="solve and verify 4,096 × 512 in full")
    parser.add_argument("--gpus", type=int, default=WHOLE[0], help="of --whole")
    parser.add_argument("--services", type=int, default=WHOLE[1], help="of --whole")
    parser.add_argument("--plot", type=Path, help="draw the growth of time to a PNG file, and nothing else")
    options = parser.parse_args(arguments)
    out = sys.stdout
    if options.plot is not None:
        draw_growth(options.plot)
        return
    if options.whole:
        out.write(
            "| GPUs × services | solved in s | planned by | gap | W | plan MB | verified in s | verdict |"
            " peak GB |\n"
        )
        out.write("|---|---:|---|---:|---:|---:|---:|---|---:|\n")
        limit_s = options.time_limit or WHOLE[2]
        out.write(measure_whole(options.gpus, options.services, limit_s, verbose=options.verbose) + "\n")
        return
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
