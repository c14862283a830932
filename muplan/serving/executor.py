"""Execution of a plan: its requests served by a backend, and held against its predictions."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from muplan.errors import InputError
from muplan.plan import Plan
from muplan.problem.problem import Problem
from muplan.run import GroupOutage, RealTime, Run
from muplan.serving.case import make_case
from muplan.serving.outcome import make_run
from muplan.serving.realtime.backend import Backend
from muplan.serving.realtime.executor import Report, serve_in_real_time
from muplan.serving.records import Records
from muplan.serving.simulator import simulate
from muplan.traces.generate import Purpose, generate_trace, trace_rng
from muplan.traces.trace import Trace
from muplan.workload import Controller

NUM_SAMPLES = 300
"""Power samples of a run in real time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A run with its request records."""

    run: Run
    records: Records


def execute(
    problem: Problem,
    plan: Plan,
    *,
    seed: int = 0,
    duration_s: float | None = None,
    controller: Controller | None = None,
    trace: Trace | None = None,
) -> Run:
    """Execute a plan on the simulated backend and compare the run with the plan's predictions.

    Parameters
    ----------
    problem
        The workload that the plan is for.
    seed
        Draws the requests, which neither search nor prediction has seen.
    duration_s
        Length of the run, seconds; the workload's where absent.
    controller
        Clock control; the plan's where absent.
    trace
        Requests to serve instead of drawn ones; the run lasts as long as it.

    Raises
    ------
    InputError
        Plan and workload do not fit together, or the run is not longer than its warm-up and cool-down.
    """
    return execute_recorded(
        problem, plan, seed=seed, duration_s=duration_s, controller=controller, trace=trace
    ).run


def execute_recorded(
    problem: Problem,
    plan: Plan,
    *,
    seed: int = 0,
    duration_s: float | None = None,
    controller: Controller | None = None,
    trace: Trace | None = None,
    backend: Backend | None = None,
    report: Report | None = None,
) -> Execution:
    """As `execute`; the result holds the request records too.

    Parameters
    ----------
    backend
        Runs the passes in real time; simulated where absent.
    report
        Is told where a run in real time stands.
    """
    problem, trace, rng = draw_requests(problem, plan, seed=seed, duration_s=duration_s, trace=trace)
    controller = controller or plan.deployment.serving.controller
    real_time, power = None, None
    if backend is None:
        records = simulate(problem, plan.deployment, trace, rng=rng, controller=controller, detailed=True)
    else:
        case = make_case(
            problem,
            plan.deployment,
            trace,
            warm_up_s=None,
            cool_down_s=None,
            controller=controller,
            num_samples=NUM_SAMPLES,
        )
        made = serve_in_real_time(case, backend, rng=rng, report=report)
        records = made.records
        power, metering_fault = backend.power(problem, plan, records)
        real_time = RealTime(
            num_lost_passes=made.num_lost,
            decision_s=made.decision_s,
            is_partial=made.is_partial,
            sets_clocks=backend.is_measured and backend.sets_clocks,
            metering_fault=metering_fault,
            outages=tuple(GroupOutage(**asdict(outage)) for outage in made.outages),
            fault=None if made.fault is None else str(made.fault),
        )
    run = make_run(
        problem,
        plan,
        records,
        backend="simulated" if backend is None else backend.name,
        label="measured" if backend is not None and backend.is_measured else "modelled",
        seed=seed,
        controller=controller.policy,
        real_time=real_time,
        power=power,
    )
    return Execution(run=run, records=records)


def draw_requests(
    problem: Problem, plan: Plan, *, seed: int, duration_s: float | None, trace: Trace | None
) -> tuple[Problem, Trace, np.random.Generator]:
    """The problem with the demand that the plan is for, the requests to serve, and what else draws from it.

    Parameters
    ----------
    trace
        The requests, where they are not to be drawn.
    """
    _check_services(problem, plan)
    problem = problem.scaled(plan.demand_factor)
    rng = trace_rng(seed, 0, Purpose.EXECUTING)
    if trace is None:
        duration_s = duration_s or problem.workload.simulation.duration_s
        trace = generate_trace(problem.services, duration_s=duration_s, rng=rng)
    return problem, trace, rng


def _check_services(problem: Problem, plan: Plan) -> None:
    """Every service of the workload has a prediction in the plan."""
    predicted = {service.service for service in plan.prediction.services}
    missing = [service.name for service in problem.services if service.name not in predicted]
    if missing:
        raise InputError(
            f"The plan {plan.name!r} predicts nothing of {', '.join(map(repr, missing))}.",
            "It was made for another workload; solve this one.",
        )
