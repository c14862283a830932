"""Random workloads, planned and verified: prints the table of docs/validation.md.

Run ``python -m validation.random_plans`` in the repository. Every workload is drawn (`validation.drawn`),
planned with short simulations and without baselines, written, and checked by ``muplan verify`` (but for
``baselines_complete``). A workload without a plan is a refusal and counted apart.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from muplan.planning.document import make_plan
from muplan.planning.methods.name import MethodName
from muplan.planning.methods.outcome import Found
from muplan.planning.solve import choose_deployment, make_planned, make_search
from muplan.problem.loading import read_problem
from muplan.serde import write_document
from muplan.verify.check import check_plan
from muplan.verify.violation import Violation
from muplan.workload import Workload
from validation.drawn import PROFILES, draw_workload

_TIME_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What became of one workload: a plan with its violations, or a refusal."""

    workload: Workload
    is_planned: bool
    violations: tuple[Violation, ...]
    seconds: float


def plan_and_verify(workload: Workload, solver: MethodName) -> Checked:
    """Plan a workload through its files, as the command line does, and verify the plan."""
    begun_s = time.monotonic()
    with TemporaryDirectory() as folder:
        path, saved = Path(folder) / "workload.yaml", Path(folder) / "plan.json"
        write_document(workload, path)
        problem = read_problem(path, profiles=PROFILES)
        search = make_search(problem, solver=solver, time_limit_s=_TIME_LIMIT_S, seed=0, tries_uniform=False)
        outcome = choose_deployment(search, solver)
        violations: tuple[Violation, ...] = ()
        if isinstance(outcome, Found):
            planned = make_planned(search, outcome, with_baselines=False)
            write_document(make_plan(problem, planned, workload=path, folder=saved.parent), saved)
            violations = tuple(
                item
                for item in check_plan(saved, profiles=PROFILES).violations
                if item.constraint != "baselines_complete"
            )
    return Checked(
        workload=workload,
        is_planned=isinstance(outcome, Found),
        violations=violations,
        seconds=time.monotonic() - begun_s,
    )


def solver_of(seed: int) -> MethodName:
    """Every second workload is planned exactly, the others greedily."""
    return MethodName.EXACT if seed % 2 == 0 else MethodName.GREEDY


def main() -> None:
    """Plan and verify until there are as many plans as asked for; print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plans", type=int, default=300, help="plans to make")
    parser.add_argument("--first", type=int, default=0, help="seed of the first workload")
    options = parser.parse_args()
    found: list[Checked] = []
    seed = options.first
    while sum(item.is_planned for item in found) < options.plans:
        found.append(plan_and_verify(draw_workload(seed), solver_of(seed)))
        seed += 1
        for violation in found[-1].violations:
            print(
                f"{found[-1].workload.name}: {violation.constraint}: {violation.subject}: {violation.message}"
            )
    print_table(found)


def print_table(found: list[Checked]) -> None:
    """Plans, refusals and violations; which kinds of workload there were."""
    planned = [item for item in found if item.is_planned]
    accepted = sum(not item.violations for item in planned)
    print("| workloads | plans | accepted by verify | refused | seconds, mean | seconds, longest |")
    print("|---:|---:|---:|---:|---:|---:|")
    seconds = [item.seconds for item in found]
    print(
        f"| {len(found)} | {len(planned)} | {accepted} | {len(found) - len(planned)}"
        f" | {sum(seconds) / len(seconds):.1f} | {max(seconds):.1f} |"
    )
    kinds: Counter[str] = Counter()
    for item in planned:
        kinds.update(kinds_of(item.workload))
    print()
    print("Among the plans: " + ", ".join(f"{name} {number}" for name, number in sorted(kinds.items())) + ".")


def kinds_of(workload: Workload) -> set[str]:
    """What a workload has that makes planning harder."""
    fleet, serving = workload.fleet, workload.serving
    found = {f"order {serving.queue_order.value}", f"routing {serving.routing.value}"}
    if len(fleet.pools) > 1:
        found.add("several pools")
    if fleet.power_cap_w is not None:
        found.add("fleet cap")
    if any(pool.reserved_gpus or pool.node_power_cap_w or pool.max_clock_mhz for pool in fleet.pools) or any(
        item.pinned_to or item.min_replicas > 1 for item in workload.services
    ):
        found.add("limits on placement")
    if serving.max_batch > 1:
        found.add("batching")
    if any(service.lengths for service in workload.services):
        found.add("generate services")
    if any(service.demand.cv >= 4 for service in workload.services):
        found.add("cv 4 and more")
    return found


if __name__ == "__main__":
    main()
