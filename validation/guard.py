"""The queueing guard against simulation: how far groups may be used, by closed form and by the simulator.

Run ``python -m validation.guard`` in the repository. Services with chosen latencies are hosted together on a
number of equal groups of one GPU; both columns are the highest utilisation at which every service keeps its
target of 99 %, in time at batch 1 (so above 1 where batches serve requests faster). Synthetic: no figure here
is a claim about a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from muplan.plan import Deployment, Group, Replica, Stage
from muplan.planning.estimates.estimate import Estimate, Shape
from muplan.planning.guard.levels import Guard, GuardState
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.problem.problem import Problem
from muplan.profile import Profile
from muplan.serving.prediction import simulate_each
from muplan.traces.generate import generate_trace, trace_rng
from muplan.workload import QueueOrder, Serving
from tests.synthetic import CLOCKS_MHZ, ClusterShape, forward_problem, forward_profile, forward_service

_CLOCK_MHZ = CLOCKS_MHZ[-1]
_ALONE = Shape(pool="v100", tensor_parallel=1, num_stages=1)
_REQUESTS = 150_000
_HALVINGS = 8
_HIGHEST = 4.0
_FIXED_POINT_STEPS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosted:
    """A service: seconds of a request, coefficient of variation of its arrivals, limit in requests' times."""

    seconds: float = 0.02
    cv: float = 1.0
    scale: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Services that share equal groups; each brings the same part of the work."""

    name: str
    hosted: tuple[Hosted, ...]
    num_groups: int
    max_batch: int = 1
    order: QueueOrder = QueueOrder.FCFS


def cases() -> list[Case]:
    """One service with ever more bursts and groups; batches; several services; long beside short ones."""
    found = [
        Case(name=f"one service, CV {cv:g}", hosted=(Hosted(cv=cv),), num_groups=groups)
        for cv in (0.5, 1.0, 2.0, 4.0, 10.0)
        for groups in (1, 4, 16)
    ]
    found += [
        Case(name=f"one service, CV {cv:g}, batches to 8", hosted=(Hosted(cv=cv),), num_groups=4, max_batch=8)
        for cv in (1.0, 4.0)
    ]
    found += [
        Case(name=f"four services, CV {cv:g}", hosted=(Hosted(cv=cv),) * 4, num_groups=groups)
        for cv in (1.0, 4.0, 10.0)
        for groups in (4, 16)
    ]
    long, short = Hosted(seconds=0.08, scale=6.0), Hosted(scale=12.0)
    found += [
        Case(name=f"long and short, {order}", hosted=(long, short), num_groups=4, order=order)
        for order in (QueueOrder.FCFS, QueueOrder.SJF, QueueOrder.EDF)
    ]
    bursty = (replace(long, cv=4.0), replace(short, cv=2.0))
    return [
        *found,
        Case(name="long and short, CV 4 and 2, sjf", hosted=bursty, num_groups=8, order=QueueOrder.SJF),
    ]


def problem_at(case: Case, utilisation: float) -> Problem:
    """The case with rates that keep its groups busy to ``utilisation`` at batch 1."""
    part = utilisation * case.num_groups / len(case.hosted)
    services = [
        forward_service(
            f"service-{number}",
            profile=_profile(item),
            rate_rps=part / item.seconds,
            limit_s=item.scale * item.seconds,
            cv=item.cv,
        )
        for number, item in enumerate(case.hosted)
    ]
    serving = Serving(max_batch=case.max_batch, queue_order=case.order)
    return forward_problem(services, num_gpus=case.num_groups, serving=serving)


def _profile(item: Hosted) -> Profile:
    shape = ClusterShape(latency_s=item.seconds / 2, weight_bytes=500_000_000, batch_exponent=0.6)
    return forward_profile(f"model-{item.seconds:g}", (shape,), repeat=2)


def closed_form(case: Case) -> float:
    """The utilisation that the guard allows all services; it depends on the rates, so by iteration."""
    utilisation = 0.5
    for _ in range(_FIXED_POINT_STEPS):
        problem = problem_at(case, max(utilisation, 1e-3))
        builder = CandidateBuilder(problem)
        estimates = _estimates(builder, problem)
        state = GuardState(
            corrections={service.name: 1.0 for service in problem.services},
            pooled_gpus={service.name: float(case.num_groups) for service in problem.services},
        )
        levels = Guard(problem, state).levels(estimates)
        allowed = max(
            (level.utilisation for level in levels if len(level.members) == len(estimates)), default=0.0
        )
        utilisation = (utilisation + allowed) / 2
    return utilisation


def _estimates(builder: CandidateBuilder, problem: Problem) -> list[Estimate]:
    found = [builder.forward_estimate(_ALONE, (_CLOCK_MHZ,), service.name) for service in problem.services]
    return [item for item in found if item is not None]


def simulated(case: Case) -> float:
    """The utilisation at which the simulator finds every service at its target, by bisection."""
    low, high = 0.0, _HIGHEST if case.max_batch > 1 else 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _holds(case, middle) else (low, middle)
    return low


def _holds(case: Case, utilisation: float) -> bool:
    problem = problem_at(case, utilisation)
    estimates = {item.service: item for item in _estimates(CandidateBuilder(problem), problem)}
    replicas = tuple(
        Replica(
            service=name,
            share=1.0 / case.num_groups,
            max_batch=item.max_batch,
            stage_clusters=item.stage_clusters,
        )
        for name, item in estimates.items()
    )
    gpus = problem.pools[0].gpu_ids()
    groups = tuple(
        Group(
            name=f"group-{number}",
            pool="v100",
            stages=(Stage(gpus=(gpus[number],), clock_mhz=_CLOCK_MHZ),),
            replicas=replicas,
        )
        for number in range(case.num_groups)
    )
    deployment = Deployment(groups=groups, serving=problem.workload.serving)
    duration_s = _REQUESTS / sum(service.rate_rps for service in problem.services)
    traces = [
        generate_trace(problem.services, duration_s=duration_s, rng=trace_rng(0, number)) for number in (0, 1)
    ]
    rngs = [np.random.default_rng(0) for _ in traces]
    runs = simulate_each(problem, deployment, traces, rngs=rngs, warm_up_s=duration_s / 50)
    return all(
        np.mean([run.services[number].attainment for run in runs]) >= service.attainment
        for number, service in enumerate(problem.services)
    )


def main(chosen: Sequence[Case] | None = None) -> None:
    """Print the table."""
    print("| case | groups | closed form | simulated |")
    print("|---|---:|---:|---:|")
    for case in chosen or cases():
        print(
            f"| {case.name} | {case.num_groups} | {closed_form(case):.3f} | {simulated(case):.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
