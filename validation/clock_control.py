"""Clock control at demands that the plan does not expect: prints a table of docs/validation.md.

Run ``python -m validation.clock_control`` in the repository. It takes the shipped plan of
``workloads/quickstart.yaml`` (or another: workload and plan as arguments) and serves its services at a
multiple of the planned rates, under every controller of clocks.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from muplan.plan import Plan
from muplan.problem.loading import read_problem
from muplan.problem.problem import Problem
from muplan.serde import read_document
from muplan.serving.metrics import Metrics, measure
from muplan.serving.simulator import simulate
from muplan.traces.generate import Purpose, generate_trace, trace_rng
from muplan.workload import CONTROL_POLICIES, Controller

SCALES = (0.5, 1.0, 1.2, 1.4)
NUM_REPLICATIONS = 5


def serve(problem: Problem, plan: Plan, scale: float, controller: Controller) -> list[Metrics]:
    """Replications at a multiple of the planned rates."""
    services = [replace(service, rate_rps=service.rate_rps * scale) for service in problem.services]
    results = []
    for number in range(NUM_REPLICATIONS):
        rng = trace_rng(0, number, Purpose.EXECUTING)
        trace = generate_trace(services, duration_s=problem.workload.simulation.duration_s, rng=rng)
        records = simulate(problem, plan.deployment, trace, rng=rng, controller=controller, num_samples=1)
        results.append(measure(records, problem))
    return results


def main() -> None:
    """Print the table."""
    workload, plan_file = (
        sys.argv[1:3]
        if len(sys.argv) > 2
        else (
            "workloads/quickstart.yaml",
            "plans/quickstart.json",
        )
    )
    problem, plan = read_problem(Path(workload)), read_document(Path(plan_file), Plan)
    print("| demand over plan | clocks | power, W | attainment of the worst service | of all requests |")
    print("|---:|---|---:|---:|---:|")
    for scale in SCALES:
        for policy in CONTROL_POLICIES:
            results = serve(problem, plan, scale, Controller(policy=policy))
            power_w = np.mean([one.power_w for one in results])
            attainment = np.mean([[each.attainment for each in one.services] for one in results], axis=0)
            within = sum(each.num_within for one in results for each in one.services)
            requests = sum(each.num_requests for one in results for each in one.services)
            print(
                f"| {scale} | {policy} | {power_w:.0f} | {attainment.min():.2%} | {within / requests:.2%} |"
            )


if __name__ == "__main__":
    main()
