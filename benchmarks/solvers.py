"""How fast and how good the solvers are: ``python -m benchmarks.solvers``.

Models are those that the planner makes before any simulation, of shipped workloads and of random
ones; every solver gets the same model. Times exclude the building of candidates, which has its own
column.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from muplan.planning.search.tuning import first_guard, make_model
from muplan.planning.solvers.exact import solve_exact
from muplan.planning.solvers.greedy import solve_greedy
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.model import PlanningModel, Solution
from muplan.problem.loading import read_problem
from muplan.problem.problem import Problem

_WORKLOADS = ("quickstart", "light", "chat", "mixed")


def cases(workloads: Path, profiles: Path) -> Iterator[tuple[str, Problem]]:
    """The shipped workloads, and quickstart with three times its services on 16 and 32 GPUs."""
    for name in _WORKLOADS:
        yield name, read_problem(workloads / f"{name}.yaml", profiles=profiles)
    base = read_problem(workloads / "quickstart.yaml", profiles=profiles)
    for num_gpus in (16, 32):
        yield f"12 services × {num_gpus} V100", _enlarged(base, num_gpus)


def _enlarged(problem: Problem, num_gpus: int) -> Problem:
    """Three variants of every service, with rates drawn around the original's."""
    rng = np.random.default_rng(0)
    pool = problem.pools[0].model_copy(update={"num_gpus": num_gpus})
    fleet = problem.workload.fleet.model_copy(update={"pools": (pool,)})
    factor = num_gpus / problem.pools[0].num_gpus / 3.0
    services = tuple(
        replace(
            service,
            spec=service.spec.model_copy(update={"name": f"{service.name}-{copy}"}),
            rate_rps=service.rate_rps * factor * float(rng.uniform(0.6, 1.2)),
        )
        for copy in range(3)
        for service in problem.services
    )
    workload = problem.workload.model_copy(
        update={"fleet": fleet, "services": tuple(service.spec for service in services)}
    )
    return replace(problem, workload=workload, services=services)


def measure(name: str, problem: Problem, time_limit_s: float) -> list[str]:
    """Rows of the table for one problem."""
    begin = time.perf_counter()
    builder = CandidateBuilder(problem)
    model = make_model(problem, builder, first_guard(problem, builder))
    built_s = time.perf_counter() - begin
    rows = []
    for solver in ("greedy", "exact", "exact-cbc"):
        begin = time.perf_counter()
        solution = _solve(solver, model, time_limit_s)
        elapsed_s = time.perf_counter() - begin
        found = (
            f"{solution.objective:.1f} | {solution.bound:.1f} | {solution.gap:.3%}"
            if solution.found
            else "– | – | –"
        )
        rows.append(
            f"| {name} | {len(model.group_types)} | {built_s:.1f} | {solver} | {solution.status} |"
            f" {found} | {elapsed_s:.2f} |"
        )
    return rows


def _solve(solver: str, model: PlanningModel, time_limit_s: float) -> Solution:
    if solver == "greedy":
        return solve_greedy(model, time_limit_s=time_limit_s, seed=0)
    backend = "highs" if solver == "exact" else "cbc"
    return solve_exact(model, time_limit_s=time_limit_s, seed=0, backend=backend)


def main() -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", type=Path, default=Path("workloads"))
    parser.add_argument("--profiles", type=Path, default=Path("profiles"))
    parser.add_argument("--time-limit", type=float, default=60.0)
    arguments = parser.parse_args()
    out = sys.stdout
    out.write("| problem | group types | built in s | solver | status | W | bound W | gap | solved in s |\n")
    out.write("|---|---|---|---|---|---|---|---|---|\n")
    for name, problem in cases(arguments.workloads, arguments.profiles):
        for row in measure(name, problem, arguments.time_limit):
            out.write(row + "\n")
        out.flush()


if __name__ == "__main__":
    main()
