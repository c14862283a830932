"""What each lever saves: prints a table of docs/validation.md.

Run ``python -m validation.levers [WORKLOAD ...]`` in the repository. For every workload (mixed, chat, light
where none is named) the fleet is planned with all levers, then with one switched off at a time, then by
AlpaServe's search at maximum clock and at the best uniform clock; each deployment is simulated on the same
traces, which no search has seen. Everything is modelled.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from muplan.hardware.clocks import Clocks
from muplan.hardware.device import Device
from muplan.plan import Deployment
from muplan.planning.methods.name import MethodName
from muplan.planning.solve import choose_deployment, make_search
from muplan.problem.loading import read_problem
from muplan.problem.problem import Problem
from muplan.serving.metrics import Metrics
from muplan.serving.prediction import interval, replicate
from muplan.traces.generate import Purpose
from muplan.workload import Serving

WORKLOADS = ("mixed", "chat", "light")

Change = Callable[[Problem], Problem]


def one_clock_each(problem: Problem) -> Problem:
    """Clock: every GPU at the highest clock."""
    return _with_devices(problem, _at_highest_clock)


def all_loaded(problem: Problem) -> Problem:
    """Consolidation: every GPU holds models; one that serves none draws the least of a loaded, idle GPU."""
    return _with_devices(problem, _never_parked)


def no_batches(problem: Problem) -> Problem:
    """Batching: forward requests one at a time (generate services keep their continuous batches)."""
    return _with_serving(problem, problem.workload.serving.model_copy(update={"max_batch": 1}))


def one_gpu_each(problem: Problem) -> Problem:
    """Partition: no model spread over several GPUs."""
    return _with_serving(problem, problem.workload.serving.model_copy(update={"max_group_gpus": 1}))


LEVERS: dict[str, Change] = {
    "clock": one_clock_each,
    "consolidation": all_loaded,
    "batching": no_batches,
    "partition": one_gpu_each,
}
"""What to change in a problem so that a lever cannot be used."""


def _at_highest_clock(device: Device) -> Device:
    clocks = device.clocks.model_dump()
    clocks["usable_minimum_mhz"] = clocks["usable_maximum_mhz"]
    return device.model_copy(update={"clocks": Clocks.model_validate(clocks)})


def _never_parked(device: Device) -> Device:
    idle_w = float(device.loaded_power_w(device.effective_clock_mhz(device.usable_clocks_mhz[0])))
    parked = device.power.parked_w.model_copy(update={"value": idle_w})
    return device.model_copy(update={"power": device.power.model_copy(update={"parked_w": parked})})


def _with_devices(problem: Problem, change: Callable[[Device], Device]) -> Problem:
    return replace(problem, devices={pool: change(device) for pool, device in problem.devices.items()})


def _with_serving(problem: Problem, serving: Serving) -> Problem:
    return replace(problem, workload=problem.workload.model_copy(update={"serving": serving}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A deployment, its power on every trace, and the least margin of a service above its target."""

    name: str
    deployment: Deployment | None
    powers_w: tuple[float, ...] = ()
    margin: float = float("nan")
    search_s: float = 0.0


def planned(problem: Problem, name: str, method: MethodName = MethodName.EXACT) -> Row:
    """The row of a problem planned by a method."""
    start_s = time.monotonic()
    search = make_search(problem, solver=method, time_limit_s=60.0, seed=0, tries_uniform=True)
    deployment = choose_deployment(search, method).deployment
    search_s = time.monotonic() - start_s
    if deployment is None:
        return Row(name=name, deployment=None, search_s=search_s)
    runs = replicate(problem, deployment, seed=0, purpose=Purpose.VERIFYING)
    return Row(
        name=name,
        deployment=deployment,
        powers_w=tuple(run.power_w for run in runs),
        margin=_margin(problem, runs),
        search_s=search_s,
    )


def _margin(problem: Problem, runs: Sequence[Metrics]) -> float:
    return min(
        float(np.mean([run.service(service.name).attainment for run in runs])) - service.attainment
        for service in problem.services
    )


def rows_of(problem: Problem) -> Iterator[Row]:
    """The plan, the plan without each lever, and what it is held against."""
    yield planned(problem, "all levers")
    for lever, without in LEVERS.items():
        yield planned(without(problem), f"without {lever}")
    yield planned(problem, "alpaserve", MethodName.ALPASERVE)
    yield planned(problem, "uniform-clock", MethodName.UNIFORM_CLOCK)


def text_of(row: Row, plan: Row) -> str:
    """One line of the table."""
    if row.deployment is None:
        return f"| {row.name} | no plan | | | | | {row.search_s:.0f} |"
    power = interval(row.powers_w)
    ratio = interval([mine / theirs for mine, theirs in zip(row.powers_w, plan.powers_w, strict=True)])
    shapes = sorted({(group.tensor_parallel, len(group.stages)) for group in row.deployment.groups})
    widest = ", ".join(f"{width} × {stages}" for width, stages in shapes)
    return (
        f"| {row.name} | {power.mean:.0f} ± {power.high - power.mean:.0f} |"
        f" {ratio.mean:.3f} ({ratio.low:.3f}–{ratio.high:.3f}) | {100 * row.margin:+.2f} |"
        f" {len(row.deployment.placed_gpus)} | {widest} | {row.search_s:.0f} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for every workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS), help="names of shipped workloads")
    for name in parser.parse_args(arguments).workloads:
        problem = read_problem(Path("workloads") / f"{name}.yaml", profiles=Path("profiles"))
        print(f"**{name}**: {problem.workload.description}\n")
        print("| deployment | W | over the plan | least margin, points | GPUs | tensor × stages | search s |")
        print("|---|---:|---:|---:|---:|---|---:|")
        plan: Row | None = None
        for row in rows_of(problem):
            plan = plan or row
            print(text_of(row, plan))
            sys.stdout.flush()
        print()


if __name__ == "__main__":
    main()
