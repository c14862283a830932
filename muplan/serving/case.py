"""The case of a simulation: problem, deployment and trace, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.errors import InputError
from muplan.plan import Deployment, Group
from muplan.problem.problem import Problem
from muplan.serving.groups import group_kind
from muplan.serving.layout import Integers, Rows, settings_row
from muplan.serving.policies import QUEUE_ORDER_CODE, ROUTING_CODE, admitted
from muplan.traces.trace import Trace
from muplan.workload import Controller


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What both kernels are given.

    Parameters
    ----------
    service
        Each request's service as the problem numbers them; shape (requests,).
    admitted
        Which requests the deployment lets in; shape (requests,).
    warm_up_s
        Start of the measured period; its end is the trace's.
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
    num_samples: int

    def settings(self) -> Rows:
        """The settings of a kernel, one row."""
        serving = self.deployment.serving
        return settings_row(
            serving,
            self.controller,
            codes=(QUEUE_ORDER_CODE[serving.queue_order], ROUTING_CODE[serving.routing]),
            warm_up_s=self.warm_up_s,
            duration_s=self.trace.duration_s,
            num_samples=self.num_samples,
        )

    def requests(self, kind: str) -> Integers:
        """Numbers of the admitted requests of one kind."""
        of_kind = np.array([one.request_kind == kind for one in self.problem.services], dtype=np.bool_)
        return np.flatnonzero(of_kind[self.service] & self.admitted)

    def groups(self, kind: str) -> tuple[Group, ...]:
        """The groups of one kind."""
        return groups_of(self.problem, self.deployment, kind)

    def group_numbers(self, groups: tuple[Group, ...]) -> Integers:
        """Numbers of groups in the deployment."""
        names = [group.name for group in self.deployment.groups]
        return np.array([names.index(group.name) for group in groups], dtype=np.int64)


def groups_of(problem: Problem, deployment: Deployment, kind: str) -> tuple[Group, ...]:
    """The groups of a deployment that serve one kind of requests."""
    return tuple(group for group in deployment.groups if group_kind(problem, group) == kind)


def make_case(
    problem: Problem,
    deployment: Deployment,
    trace: Trace,
    *,
    warm_up_s: float | None,
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
    if not 0 <= warm_up_s < trace.duration_s:
        raise InputError(
            f"A warm-up of {warm_up_s:g} s leaves nothing of a trace of {trace.duration_s:g} s.",
            "Shorten the warm-up, or simulate longer.",
        )
    _check_groups(problem, deployment)
    service = _service_numbers(problem, trace)
    return Case(
        problem=problem,
        deployment=deployment,
        trace=trace,
        service=service,
        admitted=_admitted(problem, deployment, service),
        controller=deployment.serving.controller if controller is None else controller,
        warm_up_s=warm_up_s,
        num_samples=num_samples,
    )


def _check_groups(problem: Problem, deployment: Deployment) -> None:
    """Groups have names of their own, and GPUs that the fleet has."""
    names = [group.name for group in deployment.groups]
    repeated = sorted({name for name in names if names.count(name) > 1})
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
    names = [service.name for service in problem.services]
    unknown = [name for name in trace.services if name not in names]
    if unknown:
        raise InputError(
            f"The trace has requests of {unknown[0]!r}, which is no service of the workload.",
            f"Its services are {', '.join(names)}; rename or remove these requests.",
        )
    numbers = np.array([names.index(name) for name in trace.services], dtype=np.int64)
    return numbers[trace.service] if len(trace) else np.empty(0, dtype=np.int64)


def _admitted(problem: Problem, deployment: Deployment, service: Integers) -> NDArray[np.bool_]:
    """Which requests the deployment lets in."""
    shares = np.array([deployment.admitted.get(one.name, 1.0) for one in problem.services], dtype=np.float64)
    if (shares >= 1.0).all():
        return np.ones(len(service), dtype=np.bool_)
    return admitted(service, shares)
