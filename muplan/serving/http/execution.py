"""Execution of a plan on servers that are deployed already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from muplan.endpoints import Endpoints
from muplan.errors import InputError
from muplan.plan import Plan
from muplan.problem.problem import Problem
from muplan.run import RealTime
from muplan.serde import locate_faults, read_document
from muplan.serving.case import Case, make_case
from muplan.serving.executor import NUM_SAMPLES, Execution, draw_requests
from muplan.serving.gpu_energy import measured_power
from muplan.serving.http.driver import Driver, Exchange, Report
from muplan.serving.http.energy import nvml_meters
from muplan.serving.http.outcome import over_http_of, records_of
from muplan.serving.http.router import Router
from muplan.serving.http.target import Target, make_targets
from muplan.serving.outcome import make_run
from muplan.serving.simulator import routing_seed
from muplan.traces.trace import Trace
from muplan.workload import Controller


def read_endpoints(
    path: Path, problem: Problem, plan: Plan, environment: Mapping[str, str]
) -> tuple[Endpoints, tuple[Target, ...]]:
    """Read a file of endpoints and match it with a plan: `make_targets`, with lines in the faults."""
    endpoints = read_document(path, Endpoints)
    try:
        return endpoints, make_targets(problem, plan.deployment, endpoints, environment)
    except InputError as error:
        raise InputError.from_faults(locate_faults(error.faults, path), error.remedy) from None


def execute_on_servers(
    problem: Problem,
    plan: Plan,
    endpoints: Endpoints,
    targets: tuple[Target, ...],
    *,
    seed: int = 0,
    duration_s: float | None = None,
    controller: Controller | None = None,
    trace: Trace | None = None,
    report: Report | None = None,
) -> Execution:
    """Send a plan's requests to the servers that it is deployed on, and hold what they do against the plan.

    Parameters
    ----------
    targets
        The server of every replica, as `make_targets` finds them.
    report
        Is told where the run stands.

    Others as of `muplan.serving.executor.execute`.

    Raises
    ------
    InputError
        aiohttp is not installed, or the clocks shall move.
    EndpointError
        A server is not there, or does not take requests.
    DeviceError
        A GPU that is named is not there, or does not tell its energy.
    """
    controller = controller or plan.deployment.serving.controller
    _check(controller)
    problem, trace, rng = draw_requests(problem, plan, seed=seed, duration_s=duration_s, trace=trace)
    case = make_case(
        problem,
        plan.deployment,
        trace,
        warm_up_s=None,
        cool_down_s=None,
        controller=controller,
        num_samples=NUM_SAMPLES,
    )
    _check_tokens(case)
    rule, drawing = plan.deployment.serving.routing, routing_seed(case, rng)
    for target in targets:  # have the compiled rules loaded before time counts
        Router(targets, rule, seed=drawing).choose(target.service, 0)
    with nvml_meters(endpoints) as meters:
        exchange = Driver(
            case=case,
            targets=targets,
            router=Router(targets, rule, seed=drawing),
            timeout_s=endpoints.timeout_s,
            seed=seed,
            meters=meters,
            report=report,
        ).run()
    return _execution(case, plan, endpoints, targets, exchange, seed=seed)


def _execution(
    case: Case,
    plan: Plan,
    endpoints: Endpoints,
    targets: tuple[Target, ...],
    exchange: Exchange,
    *,
    seed: int,
) -> Execution:
    """The document and the records of what was exchanged."""
    records = records_of(case, targets, exchange)
    over_http = over_http_of(case, endpoints, targets, exchange, records)
    power, fault = measured_power(
        case.problem,
        plan,
        records,
        exchange.readings,
        group_gpus={one.group: one.gpus for one in endpoints.endpoints if one.gpus},
        parked_gpus=endpoints.parked_gpus,
    )
    run = make_run(
        case.problem,
        plan,
        records,
        backend="http",
        label="measured",
        seed=seed,
        controller=case.controller.policy,
        real_time=RealTime(
            num_lost_passes=0,
            decision_s=exchange.deciding_s / max(int((exchange.targets >= 0).sum()), 1),
            is_partial=exchange.is_partial,
        ),
        over_http=over_http.model_copy(update={"metering_fault": fault}),
        power=power,
    )
    return Execution(run=run, records=records)


def _check_tokens(case: Case) -> None:
    """Servers are asked with a prompt, and for a reply where they generate."""
    generates = np.array([service.request_kind == "generate" for service in case.problem.services])
    is_empty = (case.trace.input_tokens < 1) | (generates[case.service] & (case.trace.output_tokens < 1))
    if is_empty.any():
        name = case.problem.services[int(case.service[is_empty.argmax()])].name
        raise InputError(
            f"The trace has requests of {name!r} without an input token, or without an output token.",
            "Give each at least one.",
        )


def _check(controller: Controller) -> None:
    """There is aiohttp, and nobody asks for clocks that move."""
    try:
        import aiohttp  # noqa: F401 - is it there?
    except ImportError as error:
        raise InputError(f"The HTTP backend needs aiohttp ({error}).", "pip install 'muplan[http]'") from None
    if controller.policy != "fixed":
        raise InputError(
            f"The controller {controller.policy!r} cannot move the clocks of deployed servers.",
            "Execute with the clocks that they have: --controller fixed",
        )
