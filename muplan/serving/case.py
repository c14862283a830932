"""The case of a simulation: problem, deployment and trace, checked against each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.errors import Fault, InputError
from muplan.plan import Deployment, Group
from muplan.problem.problem import Problem
from muplan.problem.serving_rules import serving_faults
from muplan.serving.groups import group_kind
from muplan.serving.layout import Integers, Rows, settings_row
from muplan.serving.policies import (
    FORETELLING,
    KEPT,
    LENGTH_ORDERS,
    NO_PROMISES,
    QUEUE_ORDER_CODE,
    REJECTION_CODE,
    ROUTING_CODE,
    admitted,
    plain_order,
)
from muplan.traces.trace import Trace
from muplan.workload import Controller, QueueOrder, Rejection, Routing, Serving


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What both kernels are given.

    Parameters
    ----------
    service
        Each request's service as the problem numbers them; shape (requests,).
    admitted
        Which requests the deployment lets in; shape (requests,).
    warm_up_s, cool_down_s
        What is not measured at the beginning and at the end of the trace.
    num_samples
        Number of power samples.
    """

    problem: Problem
    deployment: Deployment
    trace: Trace
    service: Integers
    admitted: NDArray[np.bool_]
    controller: Controller
    warm_up_s: float
    cool_down_s: float
    num_samples: int

    @property
    def measured_until_s(self) -> float:
        """End of the measured period."""
        return self.trace.duration_s - self.cool_down_s

    def settings(self, kind: str, routing_seed: int = 0) -> Rows:
        """The settings of a kind's kernel, one row; the seed is that of power-of-two routing."""
        serving, order = self.deployment.serving, self._queue_order(kind)
        return settings_row(
            serving,
            self.controller,
            codes=(
                QUEUE_ORDER_CODE[order],
                ROUTING_CODE[serving.routing],
                REJECTION_CODE[serving.rejection],
            ),
            promises=self._promises(order),
            ages=self._ages(kind, order),
            routing_seed=routing_seed,
            warm_up_s=self.warm_up_s,
            measured_until_s=self.measured_until_s,
            duration_s=self.trace.duration_s,
            num_samples=self.num_samples,
        )

    def _queue_order(self, kind: str) -> QueueOrder:
        """The queue order: deadlines of equal limits are the order of arrival."""
        services = [service for service in self.problem.services if service.request_kind == kind]
        limits_s = [
            service.limits.latency_s if kind == "forward" else service.limits.ttft_s for service in services
        ]
        return plain_order(self.deployment.serving.queue_order, limits_s)

    def completions_are_known(self) -> bool:
        """Whether a forward request's completion is known when it comes, as long as clocks are fixed."""
        return self._queue_order("forward") is QueueOrder.FCFS and self._is_unbatched()

    def _is_unbatched(self) -> bool:
        replicas = [replica for group in self.groups("forward") for replica in group.replicas]
        return self.deployment.serving.batch_timeout_s == 0 and all(one.max_batch == 1 for one in replicas)

    def _ages(self, kind: str, order: QueueOrder) -> bool:
        """Whether waits are bounded: requests of a single service have equal work, unless they generate."""
        several = kind == "generate" or any(len(group.replicas) > 1 for group in self.groups(kind))
        return order in LENGTH_ORDERS and self.deployment.serving.wait_cap != "none" and several

    def _promises(self, order: QueueOrder) -> int:
        """Whether stages of forward groups keep promises, and whether these foretell completions."""
        serving = self.deployment.serving
        if serving.rejection is Rejection.AT_ARRIVAL:
            return FORETELLING
        if order is QueueOrder.FCFS and self._is_unbatched():
            return FORETELLING
        return KEPT if serving.routing is Routing.LEAST_LAST_STAGE else NO_PROMISES

    def counted(self, requests: Integers) -> NDArray[np.bool_]:
        """Which of these requests arrive in the measured period; of the shape of ``requests``."""
        arrival_s = self.trace.arrival_s[requests]
        return (arrival_s >= self.warm_up_s) & (arrival_s < self.measured_until_s)

    def requests(self, kind: str) -> Integers:
        """Numbers of the admitted requests of one kind."""
        of_kind = np.array([one.request_kind == kind for one in self.problem.services], dtype=np.bool_)
        return np.flatnonzero(of_kind[self.service] & self.admitted)

    def selection(self, kind: str) -> Integers | slice:
        """As `requests`, to index columns of all requests with; all of them without a copy."""
        numbers = self.requests(kind)
        return slice(None) if len(numbers) == len(self.trace) else numbers

    def groups(self, kind: str) -> tuple[Group, ...]:
        """The groups of one kind."""
        return groups_of(self.problem, self.deployment, kind)

    def group_numbers(self, groups: tuple[Group, ...]) -> Integers:
        """Numbers of groups in the deployment."""
        numbers = {group.name: number for number, group in enumerate(self.deployment.groups)}
        return np.array([numbers[group.name] for group in groups], dtype=np.int64)


def groups_of(problem: Problem, deployment: Deployment, kind: str) -> tuple[Group, ...]:
    """The groups of a deployment that serve one kind of requests."""
    return tuple(group for group in deployment.groups if group_kind(problem, group) == kind)


def make_case(
    problem: Problem,
    deployment: Deployment,
    trace: Trace,
    *,
    warm_up_s: float | None,
    cool_down_s: float | None,
    controller: Controller | None,
    num_samples: int,
) -> Case:
    """Check a simulation's inputs; what is absent is taken from workload and deployment.

    Raises
    ------
    InputError
        They do not fit together.
    """
    if warm_up_s is None:
        warm_up_s = problem.workload.simulation.warm_up_s
    if cool_down_s is None:
        cool_down_s = problem.workload.simulation.cool_down_s
    if not 0 <= warm_up_s < trace.duration_s - cool_down_s <= trace.duration_s:
        ends = f"A warm-up of {warm_up_s:g} s" + (
            f" and a cool-down of {cool_down_s:g} s" if cool_down_s else ""
        )
        raise InputError(
            f"{ends} leaves nothing of a trace of {trace.duration_s:g} s.",
            "Shorten the warm-up, or simulate longer.",
        )
    _check_groups(problem, deployment)
    _check_serving(problem, deployment.serving)
    service = _service_numbers(problem, trace)
    return Case(
        problem=problem,
        deployment=deployment,
        trace=trace,
        service=service,
        admitted=_admitted(problem, deployment, service),
        controller=deployment.serving.controller if controller is None else controller,
        warm_up_s=warm_up_s,
        cool_down_s=cool_down_s,
        num_samples=num_samples,
    )


def _check_serving(problem: Problem, serving: Serving) -> None:
    """The problem's services allow the deployment's serving rules."""
    faults = [
        Fault(file="the deployment", key=key, message=message)
        for key, message in serving_faults(serving, problem.services)
    ]
    if faults:
        raise InputError.from_faults(faults, "Correct the serving rules of the workload, and solve it again.")


def _check_groups(problem: Problem, deployment: Deployment) -> None:
    """Groups have names of their own, and GPUs that the fleet has."""
    names = Counter(group.name for group in deployment.groups)
    repeated = sorted(name for name, count in names.items() if count > 1)
    if repeated:
        raise InputError(f"Two groups are called {repeated[0]!r}.", "Give every group a name of its own.")
    known = {gpu for pool in problem.pools for gpu in pool.gpu_ids()}
    unknown = sorted(set(deployment.placed_gpus) - known)
    if unknown:
        raise InputError(
            f"The deployment names the GPU {unknown[0]!r}, which the fleet does not have.",
            "Solve the workload again with the present fleet.",
        )


def _service_numbers(problem: Problem, trace: Trace) -> Integers:
    """Each request's service as the problem numbers them."""
    names = {service.name: number for number, service in enumerate(problem.services)}
    unknown = [name for name in trace.services if name not in names]
    if unknown:
        raise InputError(
            f"The trace has requests of {unknown[0]!r}, which is no service of the workload.",
            f"Its services are {', '.join(names)}; rename or remove these requests.",
        )
    numbers = np.array([names[name] for name in trace.services], dtype=np.int64)
    return numbers[trace.service] if len(trace) else np.empty(0, dtype=np.int64)


def _admitted(problem: Problem, deployment: Deployment, service: Integers) -> NDArray[np.bool_]:
    """Which requests the deployment lets in."""
    shares = np.array([deployment.admitted.get(one.name, 1.0) for one in problem.services], dtype=np.float64)
    if (shares >= 1.0).all():
        return np.ones(len(service), dtype=np.bool_)
    return admitted(service, shares)
