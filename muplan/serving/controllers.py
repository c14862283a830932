"""Several controllers of one plan's clocks on the same requests, each beside its clairvoyant bound."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import muplan
from muplan.control_comparison import ControlComparison, ControlledRun, ServiceAttainment
from muplan.plan import Deployment, Plan
from muplan.problem.problem import Problem
from muplan.run import RunProvenance
from muplan.serde import digest
from muplan.serving.clairvoyant.bound import clairvoyant_bound, slot_width_s
from muplan.serving.metrics import measure
from muplan.serving.records import Records
from muplan.serving.simulator import Simulator
from muplan.traces.generate import Purpose, generate_trace, trace_rng
from muplan.traces.trace import Trace
from muplan.workload import Controller, ControlPolicy

MINUTE_S = 60.0


def compare_controllers(
    problem: Problem,
    plan: Plan,
    policies: Sequence[ControlPolicy],
    *,
    seed: int = 0,
    duration_s: float | None = None,
    trace: Trace | None = None,
) -> ControlComparison:
    """Serve the same requests with a plan under several controllers, on the simulated backend.

    Parameters
    ----------
    problem
        The workload that the plan is for.
    policies
        The controllers; what else a controller states is the plan's.
    seed, duration_s, trace
        As `execute`.

    Raises
    ------
    InputError
        Plan, workload and trace do not fit together.
    SolverError
        The bound could not be found.
    """
    problem = problem.scaled(plan.demand_factor)
    rng = trace_rng(seed, 0, Purpose.EXECUTING)
    if trace is None:
        duration_s = duration_s or problem.workload.simulation.duration_s
        trace = generate_trace(problem.services, duration_s=duration_s, rng=rng)
    stated = plan.deployment.serving.controller
    controllers = [stated.model_copy(update={"policy": policy}) for policy in policies]
    runs = controlled_runs(problem, plan.deployment, trace, controllers, seed=seed)
    simulation = problem.workload.simulation
    measured_s = trace.duration_s - simulation.warm_up_s - simulation.cool_down_s
    return ControlComparison(
        plan=plan.name,
        provenance=RunProvenance(
            muplan_version=muplan.__version__,
            plan_digest=digest(plan),
            workload_digest=digest(problem.workload),
        ),
        seed=seed,
        duration_s=trace.duration_s,
        warm_up_s=simulation.warm_up_s,
        cool_down_s=simulation.cool_down_s,
        slot_s=slot_width_s(measured_s),
        runs=runs,
    )


def controlled_runs(
    problem: Problem,
    deployment: Deployment,
    trace: Trace,
    controllers: Sequence[Controller],
    *,
    seed: int = 0,
) -> tuple[ControlledRun, ...]:
    """Serve a trace under each controller; the first is what the others are held against."""
    simulator = Simulator(problem, deployment)
    runs: list[ControlledRun] = []
    for controller in controllers:
        rng = trace_rng(seed, 0, Purpose.EXECUTING)
        records = simulator.run(trace, rng=rng, controller=controller, num_samples=1)
        runs.append(_controlled_run(problem, deployment, records, controller, runs[:1]))
    return tuple(runs)


def _controlled_run(
    problem: Problem,
    deployment: Deployment,
    records: Records,
    controller: Controller,
    first: Sequence[ControlledRun],
) -> ControlledRun:
    measured = measure(records, problem)
    bound_j = clairvoyant_bound(problem, deployment, records).energy_j
    per_request_j = measured.energy_per_request_j
    mean, most = changes_per_minute(records, sum(len(group.stages) for group in deployment.groups))
    return ControlledRun(
        controller=controller.policy,
        energy_j=records.energy_j,
        power_w=records.power_w,
        energy_per_request_j=None if np.isnan(per_request_j) else per_request_j,
        services=tuple(
            ServiceAttainment(service=one.service, attainment=one.attainment, target=one.target)
            for one in measured.services
        ),
        meets_targets=measured.meets_targets,
        changes_per_minute=mean,
        most_changes_in_a_minute=most,
        bound_j=bound_j,
        over_bound=records.energy_j / bound_j,
        over_first=records.energy_j / first[0].energy_j if first else 1.0,
    )


def changes_per_minute(records: Records, num_stages: int) -> tuple[float, int]:
    """Clock changes a minute: the mean over all stages, and the most of one stage in any minute."""
    minutes = [
        (change.group, change.stage, int(change.time_s / MINUTE_S)) for change in records.clock_changes
    ]
    most = int(max(np.unique(minutes, axis=0, return_counts=True)[1], default=0)) if minutes else 0
    return len(minutes) / max(num_stages, 1) / (records.duration_s / MINUTE_S), most
