"""Simulation of a deployment: a trace goes through the compiled kernels.

Groups with forward services and groups with generate services never interact, so each kind has its
kernel; both deposit into one energy account.
"""

from __future__ import annotations

from math import prod

import numpy as np

from muplan.errors import InputError
from muplan.plan import Deployment
from muplan.problem.problem import Problem
from muplan.serving import foretold
from muplan.serving.case import Case, groups_of, make_case
from muplan.serving.control import LOG_COLUMNS, change_log, windows
from muplan.serving.energy import open_account
from muplan.serving.forward_kernel import serve_forward
from muplan.serving.forward_tables import forward_tables
from muplan.serving.generate_kernel import serve_generate
from muplan.serving.generate_tables import generate_tables
from muplan.serving.kernel_tables import KernelTables
from muplan.serving.layout import (
    FORWARD_REQUEST,
    GENERATE_REQUEST,
    HEAP_NODE,
    VIRTUAL_REQUEST,
    Integers,
    Rows,
)
from muplan.serving.ledger import Columns, KernelResult, empty_columns, make_records
from muplan.serving.policies import PREDICTED_ORDERS
from muplan.serving.predictor import LengthPredictor, class_predictor
from muplan.serving.records import Records
from muplan.serving.token_intervals import NUM_COLUMNS
from muplan.traces.trace import Tokens, Trace
from muplan.workload import Controller, Routing


def simulate(
    problem: Problem,
    deployment: Deployment,
    trace: Trace,
    *,
    rng: np.random.Generator,
    warm_up_s: float | None = None,
    cool_down_s: float | None = None,
    controller: Controller | None = None,
    predictor: LengthPredictor | None = None,
    num_samples: int = 300,
    detailed: bool = False,
) -> Records:
    """Serve a trace with a deployment, in simulated time.

    Parameters
    ----------
    problem
        Devices, profiles and limits.
    deployment
        Who runs where. A service without a replica has its requests rejected.
    trace
        The requests; all are served to the end, beyond ``trace.duration_s`` where need be.
    rng
        Randomness of the length predictor (SSJF, SRPT) and of power-of-two routing; unused otherwise.
    warm_up_s, cool_down_s
        What is not measured at the beginning and at the end; the workload's where absent.
    controller
        Clock control; the deployment's where absent.
    predictor
        Predictor of output lengths under SSJF and SRPT; `ClassPredictor` where absent.
    num_samples
        Number of power samples.
    detailed
        Whether intervals between tokens are counted, and energy by service and while clocks change; else
        these are absent.

    Raises
    ------
    InputError
        Trace, deployment and problem do not fit together.
    """
    return Simulator(problem, deployment).run(
        trace,
        rng=rng,
        warm_up_s=warm_up_s,
        cool_down_s=cool_down_s,
        controller=controller,
        predictor=predictor,
        num_samples=num_samples,
        detailed=detailed,
    )


class Simulator:
    """A deployment made ready to be simulated: its tables are built once, and copied for every trace.

    `run` may be called from several threads at a time; the kernels do not hold the interpreter's lock.
    """

    def __init__(self, problem: Problem, deployment: Deployment) -> None:
        self._problem = problem
        self._deployment = deployment
        forward, generate = (
            groups_of(problem, deployment, "forward"),
            groups_of(problem, deployment, "generate"),
        )
        self._forward = forward_tables(problem, forward, deployment.serving) if forward else None
        self._generate = generate_tables(problem, generate, deployment.serving) if generate else None

    def run(
        self,
        trace: Trace,
        *,
        rng: np.random.Generator,
        warm_up_s: float | None = None,
        cool_down_s: float | None = None,
        controller: Controller | None = None,
        predictor: LengthPredictor | None = None,
        num_samples: int = 300,
        detailed: bool = False,
    ) -> Records:
        """Serve a trace; parameters and errors as `simulate`."""
        case = make_case(
            self._problem,
            self._deployment,
            trace,
            warm_up_s=warm_up_s,
            cool_down_s=cool_down_s,
            controller=controller,
            num_samples=num_samples,
        )
        columns = empty_columns(len(trace))
        results = []
        if self._forward is not None:
            tables = self._forward.copy()
            if foretold.is_foretold(case) and not detailed:  # it does not tell passes apart by service
                results.append(foretold.serve(case, tables, columns))
            else:
                results.append(_serve_forward(case, tables, columns, rng, detailed=detailed))
        if self._generate is not None:
            tables = self._generate.copy()
            results.append(_serve_generate(case, tables, columns, predictor, rng, detailed=detailed))
        return make_records(case, columns, results)


def routing_seed(case: Case, rng: np.random.Generator) -> int:
    """The seed of the draws of power-of-two routing; nothing is drawn for another."""
    if case.deployment.serving.routing is not Routing.POWER_OF_TWO:
        return 0
    return int(rng.integers(2**62))


def virtual_queues(settings: Rows, requests: Rows) -> Rows:
    """The requests' rows in virtual queues, which bounded waiting alone needs."""
    return np.zeros(len(requests) if settings["ages"][0] else 0, dtype=VIRTUAL_REQUEST)


def _serve_forward(
    case: Case, tables: KernelTables, columns: Columns, rng: np.random.Generator, *, detailed: bool
) -> KernelResult:
    """Serve the forward requests."""
    groups, requests = case.groups("forward"), forward_requests(case)
    settings = case.settings("forward", routing_seed(case, rng))
    samples_j = open_account(settings, tables.stages, detailed=detailed)
    log = change_log(len(tables.stages), settings)
    serve_forward(
        settings,
        tables.groups,
        tables.stages,
        tables.replicas,
        requests,
        virtual_queues(settings, requests),
        tables.service_candidate,
        tables.candidate_replica,
        tables.values,
        windows(len(tables.replicas), settings),
        log,
        samples_j,
    )
    note_forward(case, tables, requests, columns)
    used = int(settings["num_changes"][0]) * LOG_COLUMNS
    return KernelResult(
        groups=groups,
        stages=tables.stages,
        replicas=tables.replicas if detailed else None,
        samples_j=samples_j,
        log=log[:used],
        is_detailed=detailed,
    )


def forward_requests(case: Case) -> Rows:
    """The kernel's rows of forward requests, none of them served yet."""
    selection = case.selection("forward")
    service = case.service[selection]
    requests = np.zeros(len(service), dtype=FORWARD_REQUEST)
    requests["service"], requests["arrival_s"] = service, case.trace.arrival_s[selection]
    requests["replica"], requests["behind"] = -1, -1
    return requests


def note_forward(case: Case, tables: KernelTables, requests: Rows, columns: Columns) -> None:
    """Put what became of the forward requests into the columns of all."""
    served, done = _served(case, "forward", requests)
    numbers = case.group_numbers(case.groups("forward"))
    columns.group[served] = numbers[tables.replicas["group"][done["replica"]]]
    columns.start_s[served] = done["start_s"]
    columns.first_token_s[served] = columns.completion_s[served] = done["completion_s"]
    columns.batch[served] = done["batch"]


def _served(case: Case, kind: str, requests: Rows) -> tuple[Integers | slice, Rows]:
    """Where the served requests of a kind stand among all, and their rows; no copies where all are served."""
    hosted = requests["replica"] >= 0
    if hosted.all():
        return case.selection(kind), requests
    return case.requests(kind)[hosted], requests[hosted]


def _serve_generate(
    case: Case,
    tables: KernelTables,
    columns: Columns,
    predictor: LengthPredictor | None,
    rng: np.random.Generator,
    *,
    detailed: bool,
) -> KernelResult:
    """Serve the generate requests."""
    groups, requests = case.groups("generate"), generate_requests(case, predictor, rng)
    settings = case.settings("generate", routing_seed(case, rng))
    shape = (len(case.problem.services), NUM_COLUMNS) if detailed else (0, NUM_COLUMNS)
    account = open_account(
        settings, tables.stages, detailed=detailed, num_intervals=prod(shape), num_requests=len(requests)
    )
    first_interval, first_token = int(settings["first_interval"][0]), int(settings["first_token"][0])
    if detailed:
        account[first_token:][~case.counted(case.requests("generate"))] = np.nan
    log = change_log(len(tables.stages), settings)
    serve_generate(
        settings,
        tables.groups,
        tables.stages,
        tables.replicas,
        requests,
        np.zeros(2 * len(requests), dtype=HEAP_NODE),
        virtual_queues(settings, requests),
        np.zeros((2, int(tables.groups["max_batch"].sum())), dtype=np.int64),
        tables.service_candidate,
        tables.candidate_replica,
        tables.values,
        windows(len(tables.replicas), settings),
        log,
        account,
    )
    note_generate(case, requests, columns)
    used = int(settings["num_changes"][0]) * LOG_COLUMNS
    return KernelResult(
        groups=groups,
        stages=tables.stages,
        samples_j=account,
        log=log[:used],
        is_detailed=detailed,
        token_intervals=account[first_interval:first_token].reshape(shape) if detailed else None,
    )


def generate_requests(case: Case, predictor: LengthPredictor | None, rng: np.random.Generator) -> Rows:
    """The kernel's rows of generate requests, with what the scheduler knows of their lengths.

    Raises
    ------
    InputError
        A request is longer than its service's longest, or has no output token.
    """
    trace, selection = case.trace, case.selection("generate")
    service, arrival_s = case.service[selection], trace.arrival_s[selection]
    inputs, outputs = trace.input_tokens[selection], trace.output_tokens[selection]
    _check_lengths(case, service, inputs.astype(np.int64) + outputs, outputs)
    rows = np.zeros(len(service), dtype=GENERATE_REQUEST)
    rows["service"], rows["replica"] = service, -1
    rows["arrival_s"] = rows["queued_s"] = arrival_s
    rows["input_tokens"], rows["output_tokens"], rows["work"] = inputs, outputs, outputs
    if case.deployment.serving.queue_order in PREDICTED_ORDERS:
        for number in np.unique(service):
            mine = np.flatnonzero(service == number)
            of_service = predictor or class_predictor(case.problem.services[number])
            rows["work"][mine] = of_service.predict(outputs[mine].astype(np.int64), rng)
            rows["queued_s"][mine] += of_service.latency_s
    return rows


def _check_lengths(case: Case, service: Integers, tokens: Integers, outputs: Tokens) -> None:
    """No request is longer than its service's longest, or without an output token."""
    longest = np.array([one.max_context for one in case.problem.services])
    wrong = (tokens > longest[service]) | (outputs < 1)
    if not wrong.any():
        return
    number = service[wrong].min()
    most, name = tokens[service == number].max(), case.problem.services[number].name
    raise InputError(
        f"The trace has requests of {name!r} with up to {most} tokens in all, or"
        f" without an output token; the workload states a longest request of {longest[number]}.",
        "Shorten the requests, and give each at least one output token.",
    )


def note_generate(case: Case, requests: Rows, columns: Columns) -> None:
    """Put what became of the generate requests into the columns of all."""
    served, done = _served(case, "generate", requests)
    columns.group[served] = case.group_numbers(case.groups("generate"))[done["replica"]]
    for name in ("start_s", "first_token_s", "completion_s", "batch", "num_preemptions"):
        getattr(columns, name)[served] = done[name]
